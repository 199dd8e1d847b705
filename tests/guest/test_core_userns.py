"""User namespaces through PID 1's loop: a midwife, id-mapped layers, execs."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from containers_harness import Machine, StartFailed, held_open, read_all

from wherry_guest.zygote import Rootfs

pytestmark = pytest.mark.guest

BASE = 100_000
RANGES = [{"containerID": 0, "hostID": BASE, "size": 65536}]


def mapped(machine: Machine, *args: str, **process: Any) -> dict[str, Any]:
    spec = machine.spec(*args, **process)
    spec["linux"]["namespaces"].append({"type": "user"})
    spec["linux"] |= {"uidMappings": RANGES, "gidMappings": RANGES}
    return spec


def test_the_images_files_are_roots_and_so_is_what_is_written(machine: Machine) -> None:
    script = "id -u; stat -c %u /bin/busybox /etc; echo x >/root/new; stat -c %u /root/new"
    key = machine.new_key()
    result = machine.finish(machine.start(mapped(machine, "sh", "-c", script), key=key))
    assert result.stdout.split() == ["0", "0", "0", "0"], result
    upper = machine.directory / f"{key}-upper"
    assert (upper / "root/new").stat().st_uid == 0  # on the disk as any other container's


def test_what_an_image_has_can_be_changed_and_removed(machine: Machine) -> None:
    script = "chown 5:6 /etc/passwd && stat -c %u:%g /etc/passwd; rm -r /home && ls / | grep home"
    key = machine.new_key()
    result = machine.finish(machine.start(mapped(machine, "sh", "-c", script), key=key))
    assert (result.stdout, result.stderr) == ("5:6\n", "")
    status = (machine.directory / f"{key}-upper/etc/passwd").stat()
    assert (status.st_uid, status.st_gid) == (5, 6)


def test_outside_it_is_another_user(machine: Machine) -> None:
    container = machine.start(mapped(machine, "sleep", "100"))
    lines = Path(f"/proc/{container.pid}/status").read_text().splitlines()
    uids = next(line for line in lines if line.startswith("Uid:")).split()[1:]
    assert uids == [str(BASE)] * 4
    os.kill(container.pid, signal.SIGKILL)
    machine.finish(container)


def test_a_named_user_is_resolved_in_the_container(machine: Machine) -> None:
    spec = mapped(machine, "sh", "-c", "id -u; id -G; echo $HOME", user={"username": "web"})
    assert machine.run_spec(spec).stdout.split() == ["1000", "1000", "10", "50", "/home/web"]


def test_a_single_layer_is_mapped_without_an_overlay(machine: Machine) -> None:
    spec = mapped(machine, "stat", "-c", "%u", "/bin/busybox")
    result = machine.finish(machine.start(spec, rootfs=Rootfs(("busybox",))))
    assert result.stdout == "0\n"


def test_an_exec_enters_it(machine: Machine) -> None:
    container = machine.start(mapped(machine, "sleep", "100"))
    process = machine.spec("sh", "-c", "id -u; cat /proc/self/uid_map")["process"]
    result = machine.finish(machine.exec(container, process))
    assert result.stdout.split() == ["0", "0", str(BASE), "65536"]
    os.kill(container.pid, signal.SIGKILL)
    machine.finish(container)


def test_a_terminal_in_it(machine: Machine) -> None:
    container = machine.start(mapped(machine, "tty"), tty=True)
    assert read_all(container.stdout) == "/dev/pts/0\r\n"
    os.close(container.stderr)
    os.close(container.stdin)
    machine.exited(container.key)
    machine.zygote.forget(container.key)


def test_time_offsets(machine: Machine) -> None:
    spec = machine.spec("cat", "/proc/uptime")
    spec["linux"]["namespaces"].append({"type": "time"})
    spec["linux"]["timeOffsets"] = {"boottime": {"secs": 1_000_000}}
    assert float(machine.run_spec(spec).stdout.split()[0]) > 1_000_000


def test_the_pid_namespace_of_another_container(machine: Machine) -> None:
    first = machine.start(machine.spec("sleep", "100"))
    spec = machine.spec("sh", "-c", "tr '\\0' ' ' </proc/1/cmdline")
    for item in spec["linux"]["namespaces"]:
        if item["type"] == "pid":
            item["path"] = f"/proc/{first.pid}/ns/pid"
    assert machine.run_spec(spec).stdout == "sleep 100 "
    os.kill(first.pid, signal.SIGKILL)
    machine.finish(first)


def test_a_container_that_ends_at_once_is_started_first(machine: Machine) -> None:
    """Its end may be heard of before its midwife's word about it is read."""
    for _ in range(20):
        container = machine.start(mapped(machine, "true"))
        assert machine.exited(container.key).pid == container.pid
        machine.zygote.forget(container.key)
        for fd in (container.stdin, container.stdout, container.stderr):
            os.close(fd)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("uidMappings", [*RANGES, *RANGES], "make the user namespace"),
        ("sysctl", {"net.nonsense": "1"}, "set the sysctl net.nonsense"),
        ("resources", {"unified": {"nonsense.max": "1"}}, "set nonsense.max to 1"),
    ],
)
def test_failures_outside_and_inside_leave_nothing(
    machine: Machine, field: str, value: Any, message: str
) -> None:
    before = machine.others(), set(machine.cgroups.iterdir())
    spec = mapped(machine, "true")
    spec["linux"][field] = value
    with pytest.raises(StartFailed) as failure:
        machine.start(spec)
    assert message in failure.value.report.message
    assert (machine.others(), set(machine.cgroups.iterdir())) == before


def test_descriptors_of_pid_1_do_not_leak(machine: Machine) -> None:
    machine.run_spec(mapped(machine, "true"))
    before = held_open(machine.process.pid)
    for _ in range(5):
        machine.run_spec(mapped(machine, "true"))
        with pytest.raises(StartFailed):
            machine.start(mapped(machine, "no-such-command"))
    machine.holds_no_more(before)


def test_hooks_are_refused_by_name(machine: Machine) -> None:
    spec = machine.spec("true")
    spec["hooks"] = {"poststop": [{"path": "/bin/true"}]}
    with pytest.raises(StartFailed, match=r"hooks.poststop is not supported in the machine"):
        machine.start(spec)
