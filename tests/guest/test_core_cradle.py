"""The cradle: processes made by flat programs, the same as those that a fork's steps make."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import needs
import pytest
from containers_harness import (
    Machine,
    Running,
    StartFailed,
    held_open,
    open_files,
    open_machine,
    read_until,
)
from waiting import eventually

from wherry_guest.core.cradle import AARCH64, X86_64, program
from wherry_guest.core.flat import BASE, SIZE
from wherry_guest.core.machine_code import machine_code

pytestmark = pytest.mark.guest

LOOK = r"""
cat /proc/self/mountinfo | cut -d' ' -f4- | sed 's/upperdir=[^,]*//; s/workdir=[^,]*//'
grep -vE '^(Pid|Tgid|NS|Vm|Rss|SigQ|voluntary|nonvoluntary|Cpus|Mems)' /proc/self/status
cat /proc/self/limits /proc/self/oom_score_adj /proc/self/cgroup /proc/self/personality
ls -ln /dev /dev/pts /dev/fd/ | sed 's/ [A-Z][a-z][a-z] .*:[0-9][0-9] / /; s/\[[0-9]*\]//'
id; pwd; env | sort; hostname; umask; tty; cat /proc/self/stat | cut -d' ' -f4-8; ip addr show lo
"""


@pytest.fixture
def forking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine without a cradle."""
    opened = open_machine(tmp_path_factory.mktemp("forking"), WITHOUT_CRADLE="1")
    yield opened
    opened.close()


@pytest.fixture
def flat_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine whose PID 1 cannot fork, once it has its cradle."""
    opened = open_machine(tmp_path_factory.mktemp("flat"), WITHOUT_FORKS="1")
    yield opened
    opened.close()


def cradle_of(machine: Machine) -> int:
    """The pid of the cradle, which may be just coming up."""
    eventually("the cradle is the only one", lambda: len(machine.cradles()) == 1)
    return machine.cradles()[0]


def spare_network(machine: Machine) -> str:
    """The network namespace that waits for the next container: PID 1 has it open."""

    def found() -> list[str]:
        links = open_files(machine.process.pid)
        return [link for link in links if link.startswith("net:")]

    eventually("a spare network namespace", lambda: len(found()) == 1)
    return found()[0]


@pytest.mark.parametrize(
    ("listing", "package", "prefix", "syntax"),
    [
        (X86_64, "binutils", "", ".intel_syntax noprefix\n"),
        (AARCH64, "binutils-aarch64-linux-gnu", "aarch64-linux-gnu-", ""),
    ],
    ids=["x86-64", "arm64"],
)
def test_the_bytes_are_what_gnus_assembler_makes_of_the_words(
    tmp_path: Path, listing: str, package: str, prefix: str, syntax: str
) -> None:
    assembler = needs.require(package, f"{prefix}as")
    copier = needs.require(package, f"{prefix}objcopy")
    lines = []
    for line in listing.strip("\n").splitlines():
        words = line.partition("#")[0]
        lines.append(words.split(None, 1)[1] if words.startswith(" ") else words)
    (tmp_path / "x.s").write_text(syntax + "\n".join(lines) + "\n")
    subprocess.run([assembler, "-o", "x.o", "x.s"], cwd=tmp_path, check=True)
    subprocess.run([copier, "-O", "binary", "x.o", "x.bin"], cwd=tmp_path, check=True)
    assert machine_code(listing) == (tmp_path / "x.bin").read_bytes()


def test_the_machine_code_knows_where_its_memory_is() -> None:
    assert f"mov r15d, {BASE:#x}" in X86_64 and f"mov ebp, {SIZE:#x}" in X86_64
    assert f"mov x19, {BASE:#x}" in AARCH64 and f"mov x20, {SIZE:#x}" in AARCH64
    assert len(program("x86_64")) < 700


SPECS: dict[str, Callable[[Machine], dict[str, Any]]] = {
    "default": lambda machine: machine.spec("sh", "-c", LOOK),
    "user": lambda machine: machine.spec(
        "sh", "-c", LOOK, user={"username": "web", "umask": 0o27}, cwd="/tmp/a/b"
    ),
    "number": lambda machine: machine.spec(
        "sh", "-c", LOOK, user={"uid": 5, "gid": 6, "additionalGids": [7, 8]}
    ),
    "rights": lambda machine: machine.spec(
        "sh", "-c", LOOK,
        noNewPrivileges=True,
        oomScoreAdj=300,
        rlimits=[{"type": "RLIMIT_CORE", "soft": 0, "hard": 7}],
        scheduler={"policy": "SCHED_OTHER", "nice": 3},
        ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 5},
        capabilities={name: ["CAP_KILL", "CAP_NET_RAW"] for name in
                      ("bounding", "effective", "permitted", "inheritable", "ambient")},
    ),
    "mounts": lambda machine: _with_mounts(machine),
    "seccomp": lambda machine: _with_filter(machine),
}  # fmt: skip


def _with_mounts(machine: Machine) -> dict[str, Any]:
    spec = machine.spec("sh", "-c", LOOK)
    source = machine.directory / "source"
    (source / "sub").mkdir(parents=True, exist_ok=True)
    (source / "file").write_text("x")
    spec["root"]["readonly"] = True
    spec["mounts"] += [
        {"destination": "/mnt/a", "type": "bind", "source": str(source),
         "options": ["rbind", "ro"]},
        {"destination": "/etc/file", "type": "bind", "source": f"{source}/file",
         "options": ["bind", "nosuid"]},
        {"destination": "/srv/x", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]},
    ]  # fmt: skip
    spec["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
    spec["linux"]["personality"] = {"domain": "LINUX32"}
    spec["linux"]["rootfsPropagation"] = "private"
    spec["linux"]["devices"] = [
        {"path": "/dev/own/zero", "type": "c", "major": 1, "minor": 5, "uid": 9, "fileMode": 0o600}
    ]
    return spec


def _with_filter(machine: Machine) -> dict[str, Any]:
    spec = machine.spec("sh", "-c", f"{LOOK}\nmkdir /no")
    spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
    }
    return spec


@pytest.mark.parametrize("name", SPECS)
def test_a_container_is_what_a_fork_would_have_made(
    flat_only: Machine, forking: Machine, name: str
) -> None:
    forked = forking.run_spec(SPECS[name](forking))
    for _ in range(2):  # the second one has a network namespace that was made ahead
        flat = flat_only.run_spec(SPECS[name](flat_only))
        # mountinfo(5) has paths from the root of their file system, which may be mounted at /tmp
        here, there = (f"/{machine.directory.name}/" for machine in (flat_only, forking))
        assert flat.stdout.replace(here, "") == forked.stdout.replace(there, "")
        assert (flat.exit_code, flat.stderr) == (forked.exit_code, forked.stderr)
        spare_network(flat_only)


def test_an_exec_is_what_a_fork_would_have_made(flat_only: Machine, forking: Machine) -> None:
    found = []
    for machine in (flat_only, forking):
        container = machine.start(machine.spec("sleep", "1000"))
        for user in ({}, {"username": "web"}):
            process = machine.spec("sh", "-c", LOOK, user=user)["process"]
            result = machine.finish(machine.exec(container, process))
            found.append((result.exit_code, result.stdout.replace(str(machine.directory), "")))
        os.kill(container.pid, signal.SIGKILL)
        machine.finish(container)
    assert found[:2] == found[2:]


def test_a_terminal_is_what_a_fork_would_have_made(flat_only: Machine, forking: Machine) -> None:
    found = []
    for machine in (flat_only, forking):
        script = "tty; stty size; ls -l /dev/console | cut -c1-10; cut -d' ' -f5-8 /proc/self/stat"
        spec = machine.spec("sh", "-c", f"{script}; echo done", terminal=True)
        spec["process"]["consoleSize"] = {"height": 31, "width": 77}
        running = machine.start(spec, tty=True)
        found.append(read_until(running.stdout, "done"))
        machine.exited(running.key)
        machine.zygote.forget(running.key)
    assert "31 77" in found[0] and found[0] == found[1]


def test_programs_are_used_again_with_other_values(flat_only: Machine) -> None:
    for word in ("one", "two", "three"):
        spec = flat_only.spec("echo", word)
        spec["hostname"] = f"box-{word[:3]}"
        assert flat_only.run_spec(spec).stdout == f"{word}\n"


@pytest.mark.parametrize("failing", range(1, 260, 6))
def test_whichever_operation_fails_a_fork_makes_the_container(
    tmp_path_factory: pytest.TempPathFactory, failing: int
) -> None:
    machine = shared(tmp_path_factory)
    (machine.directory / "failing").write_text(str(failing))
    before = sorted(path.name for path in machine.cgroups.iterdir())
    result = machine.run("sh", "-c", "echo fine")
    assert (result.exit_code, result.stdout) == (0, "fine\n")
    assert sorted(path.name for path in machine.cgroups.iterdir()) == before


_machines: list[Machine] = []


def shared(factory: pytest.TempPathFactory) -> Machine:
    """One for all rounds; the operation with the number in its file `failing` is no call."""
    if not _machines:
        directory = factory.mktemp("failing")
        _machines.append(open_machine(directory, FAILING=f"{directory}/failing"))
    return _machines[0]


@pytest.fixture(scope="module", autouse=True)
def _close_shared() -> Iterator[None]:
    yield
    for machine in _machines:
        machine.close()


def test_a_command_that_is_missing_is_refused_in_the_steps_words(machine: Machine) -> None:
    with pytest.raises(StartFailed, match=r'exec: "nope": executable file not found in \$PATH'):
        machine.start(machine.spec("nope"))
    assert machine.run("echo", "next").stdout == "next\n"


def test_links_of_the_image_are_left_to_the_steps(machine: Machine) -> None:
    key = machine.new_key()
    rootfs = machine.rootfs(key)
    outside = machine.directory / "outside"
    outside.mkdir(exist_ok=True)
    assert rootfs.upperdir is not None
    for name, target in (("sys", "/proc/self/fd/8"), ("srv", str(outside))):
        (Path(rootfs.upperdir) / name).symlink_to(target)
    with pytest.raises(StartFailed, match="symbolic link on this path"):
        machine.start(machine.spec("true"), key=key, rootfs=rootfs)
    assert list(outside.iterdir()) == []


def test_a_cradle_that_was_killed_is_replaced(machine: Machine) -> None:
    machine.run("true")
    first = cradle_of(machine)
    os.kill(first, signal.SIGKILL)
    for number in range(3):
        result = machine.run("echo", str(number))
        assert (result.exit_code, result.stdout) == (0, f"{number}\n"), result
    second = cradle_of(machine)
    assert second != first
    assert machine.run("echo", "again").stdout == "again\n"


def test_the_cradle_keeps_nothing(machine: Machine) -> None:
    running = machine.start(machine.spec("sleep", "1000", env=["PATH=/bin", "SECRET=hunter2"]))
    pid = cradle_of(machine)
    assert descriptors(pid) == ["0", "1", "2", "3"]
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(BASE)
        assert memory.read(SIZE) == bytes(SIZE)
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss <= 64
    finish(machine, running)


def test_the_process_is_pid_1s_child_with_stdio_only(machine: Machine) -> None:
    running = machine.start(machine.spec("sleep", "1000"))
    assert descriptors(running.pid) == ["0", "1", "2"]
    status = Path(f"/proc/{running.pid}/status").read_text()
    assert f"PPid:\t{machine.process.pid}" in status
    finish(machine, running)


def finish(machine: Machine, running: Running) -> None:
    os.kill(running.pid, signal.SIGKILL)
    machine.finish(running)


def test_the_cradles_own_file_cannot_be_written(machine: Machine) -> None:
    machine.run("true")
    with pytest.raises(OSError, match=r"not permitted|busy"):
        os.open(f"/proc/{cradle_of(machine)}/exe", os.O_RDWR)


def test_pid_1_keeps_no_descriptors_of_those_who_ended_or_failed(machine: Machine) -> None:
    machine.run("true")
    machine.settle()
    before = held_open(machine.process.pid)
    for _ in range(20):
        machine.run("true")
        with pytest.raises(StartFailed):
            machine.start(machine.spec("nope"))
    machine.settle()
    machine.holds_no_more(before)


def test_a_container_is_started_again_when_its_mounts_have_ended(machine: Machine) -> None:
    def warnings() -> int:
        """An overlay on a directory that another one writes to."""
        log = subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout
        return log.count("is in-use as upperdir")

    before, key = warnings(), machine.new_key()
    rootfs = machine.rootfs(key)
    spec = machine.spec("sh", "-c", "cat /count; echo x >> /count")
    for round in range(5):
        result = machine.finish(machine.start(spec, key=key, rootfs=rootfs))
        assert result.stdout == "x\n" * round
    assert warnings() == before


def test_a_network_namespace_is_made_ahead_and_used_once(machine: Machine) -> None:
    machine.run("true")
    script = "readlink /proc/self/ns/net; read end"
    spares, running = [], []
    for _ in range(3):  # all at once: the number of one that is gone is used again
        spares.append(spare_network(machine))
        running.append(machine.start(machine.spec("sh", "-c", script)))
    assert [machine.finish(it).stdout.strip() for it in running] == spares
    assert len(set(spares)) == 3


def test_a_running_container_is_enough_for_the_next_network(machine: Machine) -> None:
    running = [machine.start(machine.spec("sleep", "1000")) for _ in range(2)]
    spare_network(machine)
    for it in running:
        finish(machine, it)


def test_who_has_the_machines_network_leaves_the_spare_one(machine: Machine) -> None:
    machine.run("true")
    spec = machine.spec("readlink", "/proc/self/ns/net")
    spec["linux"]["namespaces"].remove({"type": "network"})
    spare = spare_network(machine)
    for _ in range(2):
        assert machine.run_spec(spec).stdout == f"{Path('/proc/self/ns/net').readlink()}\n"
    assert spare_network(machine) == spare


def test_mounts_end_with_their_container(machine: Machine) -> None:
    def holders(mounts: Path) -> list[int]:
        """Of PID 1's children, and PID 1 by a descriptor: other machines are none of ours."""
        found = [machine.process.pid] * open_files(machine.process.pid).count(str(mounts))
        for pid in machine.children():
            with contextlib.suppress(OSError):  # it has ended
                if Path(f"/proc/{pid}/ns/mnt").readlink() == mounts:
                    found.append(pid)
        return found

    machine.run("true")
    cradle_of(machine)
    running = machine.start(machine.spec("sleep", "1000"))
    mounts = Path(f"/proc/{running.pid}/ns/mnt").readlink()
    assert running.pid in holders(mounts)
    finish(machine, running)
    assert machine.others() == [machine.agent_pid]
    eventually("its mounts are gone", lambda: not holders(mounts))


def descriptors(pid: int) -> list[str]:
    return sorted(path.name for path in Path(f"/proc/{pid}/fd").iterdir())
