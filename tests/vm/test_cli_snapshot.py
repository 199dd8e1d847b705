"""A machine of its own: what it frees goes back, its clock is right, it is saved and goes on."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Wherry
from waiting import eventually

from wherry.paths import Home

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

MB = 1_000_000
TICKING = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done"


@pytest.fixture(scope="module")
def own(test_cache: Path) -> Iterator[Wherry]:
    """A machine that was booted, since the memory of restored ones stays with the host's file."""
    root = Path(tempfile.mkdtemp(prefix="ws-"))
    (root / "config.yml").write_text("memory_mib: 1024\ncpus: 2\nidle_stop: 5s\n")
    (root / "cache").symlink_to(test_cache)
    it = Wherry(Home(root))
    it.run("machine", "start", "--no-template", timeout=200, check=True)
    it.run("run", "-d", "--name", "awake", "localhost/busybox", "sleep", "3600", check=True)
    yield it
    it.run("machine", "rm", "--force", timeout=60)
    shutil.rmtree(root, ignore_errors=True)


def qemu_pid(own: Wherry) -> int:
    record = json.loads(own.home.machine("default").qemu_record.read_bytes())
    return int(record["identity"]["pid"])


def resident(pid: int) -> int:
    """Bytes of a process in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


def machine(own: Wherry) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(own.out("machine", "inspect"))
    return facts[0] if isinstance(facts, list) else facts


def rescue(own: Wherry, *commands: str) -> None:
    """Run QMP commands as a person would."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(own.home.machine("default").rescue_socket))
        stream = connection.makefile("rwb")
        stream.readline()
        for command in ("qmp_capabilities", *commands):
            stream.write(json.dumps({"execute": command}).encode() + b"\n")
            stream.flush()
            while "return" not in json.loads(stream.readline()):
                pass


def guest_time(own: Wherry) -> float:
    return float(own.out("exec", "awake", "date", "+%s"))


def test_memory_that_the_guest_frees_goes_back_to_the_host(own: Wherry) -> None:
    pid = qemu_pid(own)
    fill = "dd if=/dev/zero of=/dev/shm/x bs=1M count=300 2>/dev/null; sleep 30"
    own.out(
        "run", "-d", "--name", "hog", "--shm-size", "400m", "localhost/busybox", "sh", "-c", fill
    )
    eventually("the guest has it", lambda: "x" in own.out("exec", "hog", "ls", "/dev/shm"))
    eventually(
        "all of it", lambda: own.out("exec", "hog", "stat", "-c", "%s", "/dev/shm/x") == "314572800"
    )
    full = resident(pid)
    own.out("rm", "-f", "hog")
    eventually("it is back", lambda: full - resident(pid) > 250 * MB, seconds=40)


def test_room_that_the_guest_frees_goes_back_to_the_host(own: Wherry) -> None:
    disk = own.home.machine("default").data_disk

    def allocated() -> int:
        return disk.stat().st_blocks * 512

    write = (
        "dd if=/dev/urandom of=/a bs=1M count=20; for i in $(seq 10); do cat /a; done > /b; sync"
    )
    own.out("run", "--name", "big", "localhost/busybox", "sh", "-c", write)
    full = allocated()
    own.out("rm", "big")
    own.run("volume", "prune", "--force", check=True)
    eventually("the file is smaller", lambda: full - allocated() > 180 * MB, seconds=60)


def test_the_guests_clock_is_right_after_it_stood_still(own: Wherry) -> None:
    rescue(own, "stop")
    stopped = time.monotonic()
    eventually("time goes by", lambda: time.monotonic() - stopped > 3, seconds=10)
    rescue(own, "cont")
    eventually("told the time", lambda: abs(guest_time(own) - time.time()) < 2.0, seconds=10)
    own.out("run", "--name", "timed", "localhost/busybox", "true")
    finished = own.out("inspect", "--format", "{{.State.FinishedAt}}", "timed")
    own.out("rm", "timed")
    told = time.mktime(time.strptime(finished[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    assert abs(told - time.time()) < 3.0


def test_containers_go_on_where_they_were_saved(own: Wherry) -> None:
    own.out("run", "-d", "--name", "box", "localhost/busybox", "sh", "-c", TICKING)
    eventually("it runs", lambda: own.out("logs", "box").endswith("5"))
    own.out("exec", "box", "sh", "-c", "echo then > /kept")
    began = time.monotonic()
    own.out("machine", "snapshot", "save", "one")
    took = time.monotonic() - began
    saved = int(own.out("logs", "--tail", "1", "box"))
    eventually("it runs on", lambda: int(own.out("logs", "--tail", "1", "box")) > saved + 1)
    boot_id = own.out("exec", "box", "cat", "/proc/sys/kernel/random/boot_id")
    drawn = own.out("exec", "box", "head", "-c", "16", "/proc/sys/kernel/random/uuid")

    own.out("run", "-d", "--name", "later", "localhost/busybox", "sleep", "3600")
    own.out("rm", "-f", "box")
    follower = own.popen("logs", "-f", "later")
    own.run("machine", "snapshot", "restore", "--force", "one", timeout=60, check=True)
    assert follower.wait(timeout=20) != 0, "a stream of a machine that is gone ends with an error"
    for pipe in (follower.stdin, follower.stdout, follower.stderr):
        assert pipe is not None
        pipe.close()

    names = own.out("ps", "-a", "--format", "{{.Names}}").split()
    assert "box" in names and "later" not in names
    assert own.out("exec", "box", "cat", "/proc/sys/kernel/random/boot_id") == boot_id
    assert own.out("exec", "box", "cat", "/kept") == "then"
    lines = [int(line) for line in own.out("logs", "box").split()]
    assert lines == list(range(1, len(lines) + 1)), "no line is lost or told twice"
    eventually("it goes on", lambda: int(own.out("logs", "--tail", "1", "box")) > saved + 5)
    assert abs(float(own.out("exec", "box", "date", "+%s")) - time.time()) < 3.0
    again = own.out("exec", "box", "head", "-c", "16", "/proc/sys/kernel/random/uuid")
    assert again != drawn
    row = own.out(
        "machine", "snapshot", "ls", "--format", "{{.Name}} {{.Running}} {{.MachineType}}"
    )
    assert row.startswith("one 2 pc-q35-")
    assert took < 10.0, "2 s on a machine that does nothing else"


def test_an_engine_that_is_killed_while_it_saves_costs_nothing(own: Wherry) -> None:
    before = int(own.out("logs", "--tail", "1", "box"))
    saving = own.popen("machine", "snapshot", "save", "broken-off")
    drafts = own.home.machine("default").snapshots
    eventually("it has begun", lambda: any(drafts.glob(".broken-off.new/state")))
    own.kill_engine()
    saving.communicate(timeout=30)
    eventually("it runs on", lambda: int(own.out("logs", "--tail", "1", "box")) > before + 2)
    assert own.out("inspect", "--format", "{{.State.Status}}", "box") == "running"
    assert [it.name for it in drafts.iterdir()] == ["one"]


def test_of_another_qemu_only_the_disk_is_restored(own: Wherry) -> None:
    record = own.home.machine("default").snapshots / "one" / "snapshot.json"
    data = json.loads(record.read_bytes())
    data["board"]["qemu"] = [6, 0]
    record.write_text(json.dumps(data))
    own.out("exec", "box", "sh", "-c", "echo now > /kept")
    done = own.run("machine", "snapshot", "restore", "--force", "one", timeout=200, check=True)
    said = [line for line in done.stderr.decode().splitlines() if "QEMU 6.0" in line]
    assert len(said) == 1
    status = own.out("inspect", "--format", "{{.State.Status}}", "box")
    assert status == "exited"
    own.out("start", "box", "awake")
    assert own.out("exec", "box", "cat", "/kept") == "then"
    own.out("machine", "snapshot", "rm", "one")


def test_an_idle_machine_is_put_aside_and_comes_back(own: Wherry) -> None:
    boot_id = own.out("exec", "awake", "cat", "/proc/sys/kernel/random/boot_id")
    pid = qemu_pid(own)
    own.out("rm", "-f", "awake", "box")
    own.out("create", "--name", "waiting", "localhost/busybox", "true")
    eventually("it is put aside", lambda: machine(own)["state"] == "stopped", seconds=40)
    assert not Path(f"/proc/{pid}").exists()
    assert own.out("ps", "-a", "--format", "{{.Names}}") == "waiting"
    assert machine(own)["state"] == "stopped", "a question starts nothing"
    again = own.out("run", "--rm", "localhost/busybox", "cat", "/proc/sys/kernel/random/boot_id")
    assert again == boot_id


def test_a_machine_that_is_off_is_saved_too(own: Wherry) -> None:
    own.out("machine", "stop")
    own.out("machine", "snapshot", "save", "off")
    own.out("rm", "waiting")
    done: subprocess.CompletedProcess[bytes] = own.run(
        "machine", "snapshot", "restore", "--force", "off", check=True
    )
    assert done.stdout.decode().strip() == "off"
    assert own.out("ps", "-a", "--format", "{{.Names}}") == "waiting"
