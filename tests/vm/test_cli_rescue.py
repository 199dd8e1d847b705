"""What keeps a user from being stuck: a hung engine, a paused machine, a look from outside."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import BUSYBOX, qemu_of
from harness import Wherry
from waiting import eventually

from wherry.machine.accel import host_arch

pytestmark = pytest.mark.vm

HUNG_SECONDS = 15.0
"""On a busy host: it is three where nothing else runs."""
LONG_AGO = (1_000_000_000, 1_000_000_000)


@pytest.fixture
def container(wherry: Wherry) -> Iterator[str]:
    """A container that runs."""
    name = f"rescue-{uuid.uuid4().hex[:8]}"
    wherry.run("run", "-d", "--name", name, "localhost/busybox", "sleep", "1000", check=True)
    yield name
    wherry.run("rm", "-f", name, check=True)


def qmp(wherry: Wherry, command: str) -> dict[str, object]:
    """Execute a command through the rescue socket, as somebody with a QMP shell would."""
    path = wherry.home.machine("default").rescue_socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(20)
        connection.connect(os.fspath(path))
        with connection.makefile("rwb") as file:
            file.readline()  # the greeting
            answer: dict[str, object] = {}
            for wanted in ("qmp_capabilities", command):
                file.write(json.dumps({"execute": wanted}).encode() + b"\n")
                file.flush()
                while "return" not in (answer := json.loads(file.readline())):
                    assert "error" not in answer, answer
            value = answer["return"]
            assert isinstance(value, dict)
            return value


def test_a_hung_engine_is_noticed_by_who_listens_and_containers_run_on(wherry: Wherry) -> None:
    paths = wherry.home.machine("default")
    container = f"rescue-{uuid.uuid4().hex[:8]}"
    listening = wherry.popen("run", "--name", container, BUSYBOX, "sh", "-c", "echo on; sleep 1000")
    assert listening.stdout is not None
    assert listening.stdout.readline() == b"on\n"
    hung = wherry.engine_pid()
    os.kill(hung, signal.SIGSTOP)
    os.utime(paths.engine_record, LONG_AGO)  # it has hung for a while
    said = listening.communicate(timeout=120)[1]
    assert listening.returncode == 125
    assert b"was hung and has been ended; container " in said
    assert b"hint: wherry attach" in said
    assert wherry.out("exec", container, "echo", "alive", timeout=120) == "alive"
    assert wherry.engine_pid() != hung
    state = json.loads(wherry.out("inspect", container))[0]["State"]
    assert (state["Status"], state["Error"]) == ("running", "")
    wherry.out("rm", "-f", container)


def test_a_qemu_that_does_nothing_is_known_in_seconds_and_goes_on(
    wherry: Wherry, container: str
) -> None:
    qemu = qemu_of(wherry).pid
    os.kill(qemu, signal.SIGSTOP)
    try:
        for command in (["exec", container, "true"], ["logs", container]):
            began = time.monotonic()
            done = wherry.run(*command)
            assert time.monotonic() - began < HUNG_SECONDS
            assert done.returncode != 0
            assert b"stopped by a signal" in done.stderr
            assert b"kill -CONT %d" % qemu in done.stderr
        assert "Up " in wherry.out("ps", "--filter", f"name={container}")
        assert "stopped by a signal" in wherry.out("machine", "inspect")
    finally:
        os.kill(qemu, signal.SIGCONT)

    def answers() -> bool:
        return wherry.run("exec", container, "echo", "on").stdout == b"on\n"

    eventually("it goes on", answers)


def test_a_machine_that_was_paused_says_so_and_goes_on(wherry: Wherry, container: str) -> None:
    qmp(wherry, "stop")
    paused = eventually(
        "the engine knows that the machine is paused",
        lambda: json.loads(wherry.out("machine", "inspect"))[0]["paused"],
    )
    assert "QMP" in str(paused)
    done = wherry.run("exec", container, "true")
    assert done.returncode != 0
    assert b"the machine is paused" in done.stderr
    assert b"wherry machine start lets it go on" in done.stderr
    doctor = wherry.run("doctor", "--offline", "--json")
    found = {it["name"]: it for it in json.loads(doctor.stdout)}
    assert found["machine default"]["status"] == "warn"
    wherry.run("machine", "start", check=True)
    assert wherry.out("exec", container, "echo", "on") == "on"


@pytest.fixture
def small_disk(wherry: Wherry) -> Iterator[Path]:
    """The directory of a machine `small`, on a file system of 48 MiB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounts a file system: needs root on Linux")
    paths = wherry.home.machine("small")
    paths.root.mkdir(parents=True, mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=48M,mode=700", "tmpfs", os.fspath(paths.root)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        paths.root.rmdir()
        pytest.skip("mounting is not allowed here")
    config = {"cpus": 2, "memory_mib": 1024, "disk_gib": 8, "arch": host_arch()}
    paths.config.write_text(json.dumps(config))
    yield paths.root
    wherry.run("-M", "small", "machine", "stop", timeout=120)
    eventually(
        "the engine is gone",
        lambda: (
            not wherry.run("-M", "small", "machine", "rm", "--force", timeout=60).returncode
            or not paths.engine_record.exists()
        ),
        seconds=60,
    )
    subprocess.run(["umount", "-l", os.fspath(paths.root)], check=True)
    paths.root.rmdir()


def test_a_machine_whose_disk_is_full_waits_for_room_and_loses_nothing(
    wherry: Wherry, small_disk: Path, request: pytest.FixtureRequest
) -> None:
    def small(*words: str) -> subprocess.CompletedProcess[bytes]:
        return wherry.run("-M", "small", *words, timeout=120)

    script = "tr '\\0' x < /dev/zero | head -c 64000000 > /file; sync; md5sum < /file"
    command = ("run", "--name", "writer", "localhost/busybox", "sh", "-c", script)
    attached = wherry.popen("-M", "small", *command)
    request.addfinalizer(attached.kill)

    def paused() -> object:
        return json.loads(small("machine", "inspect", "small").stdout)[0]["paused"]

    assert eventually("the machine is paused", paused, seconds=60) == "the host's disk is full"
    done = small("exec", "writer", "true")
    assert b"the machine is paused: the host's disk is full" in done.stderr
    assert attached.poll() is None
    mount = ["mount", "-o", "remount,size=1G", os.fspath(small_disk)]
    subprocess.run(mount, check=True)
    expected = hashlib.md5(b"x" * 64_000_000, usedforsecurity=False).hexdigest()
    output, errors = attached.communicate(timeout=120)
    assert (attached.returncode, output.split()[0].decode()) == (0, expected), errors
    assert small("logs", "writer").stdout == output


def test_the_timeline_shows_the_phases_of_the_start(wherry: Wherry) -> None:
    wherry.run("machine", "start", check=True, timeout=120)
    starts = json.loads(wherry.out("machine", "timeline", "--json"))
    good = [start for start in starts if start["failed"] is None]
    names = [phase["name"] for phase in good[-1]["phases"]]
    assert {"qemu", "disk", "ready"} <= set(names)
    assert ("restore" in names) != ("kernel" in names)
    assert "TOTAL" in wherry.out("machine", "timeline")


def test_doctor_finds_nothing_wrong_with_a_running_machine(wherry: Wherry) -> None:
    wherry.run("machine", "start", check=True, timeout=120)
    done = wherry.run("doctor", "--offline", "--json", timeout=120)
    found = json.loads(done.stdout)
    assert not [it for it in found if it["status"] == "fail"], found
    details = {it["name"]: it["detail"] for it in found}
    assert details["machine default"].startswith("it runs")
    assert "answers" in details["engine default"]


def test_a_support_bundle_holds_the_machine_and_no_home(wherry: Wherry, tmp_path: Path) -> None:
    wherry.run("machine", "start", check=True, timeout=120)
    target = tmp_path / "bundle.tar.gz"
    wherry.run("support-bundle", "--offline", str(target), check=True, timeout=120)
    with tarfile.open(target) as tar:
        texts = {
            member.name.removeprefix("wherry-support/"): file.read().decode()
            for member in tar.getmembers()
            if (file := tar.extractfile(member)) is not None
        }
    assert json.loads(texts["machines/default/inspect.json"])["state"] == "running"
    assert "virtio-scsi" in texts["machines/default/qemu.json"]
    assert texts["machines/default/engine.log"]
    assert any(
        "ready" in str(start) for start in json.loads(texts["machines/default/timeline.json"])
    )
