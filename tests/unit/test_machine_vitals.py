"""A QEMU that hangs is known in seconds; a slow or a paused one is never taken for one."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine_world import World, play, process_of
from waiting import eventually

from wherry.errors import MachineError
from wherry.machine import vitals
from wherry.machine.vitals import verdict
from wherry.osutil.activity import Activity, Doing, activity, of_letters, of_stat

SLEEPS, WORKS = Activity(Doing.ASLEEP, 5.0), Activity(Doing.ASLEEP, 5.5)


@pytest.fixture
def root() -> Iterator[Path]:
    """A short path: it holds sockets."""
    path = Path(tempfile.mkdtemp(prefix="wv-"))
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize(
    ("before", "now", "seconds", "says"),
    [
        (SLEEPS, Activity(Doing.STOPPED, 5.0), 0, "stopped by a signal"),
        (SLEEPS, SLEEPS, vitals.SURE_SECONDS, "answers nothing and does nothing"),
        (SLEEPS, SLEEPS, vitals.SURE_SECONDS - 1, None),
        (SLEEPS, WORKS, 1000, None),
        (SLEEPS, Activity(Doing.RUNNABLE, 5.0), 1000, None),
        (SLEEPS, Activity(Doing.DISK, 5.0), vitals.DISK_SECONDS - 1, None),
        (SLEEPS, Activity(Doing.DISK, 5.0), vitals.DISK_SECONDS, "waits for a disk"),
        (SLEEPS, Activity(Doing.UNKNOWN, None), vitals.DISK_SECONDS - 1, None),
        (SLEEPS, Activity(Doing.UNKNOWN, None), vitals.DISK_SECONDS, "answers nothing"),
        (SLEEPS, None, 1000, None),
        (None, SLEEPS, 1000, None),
    ],
)
def test_only_what_is_sure_is_called_hung(
    before: Activity | None, now: Activity | None, seconds: float, says: str | None
) -> None:
    found = verdict(before, now, seconds, 7)
    assert (found is None) == (says is None)
    if found is not None and says is not None:
        assert says in found[0]
        assert "process 7" in found[0]
        assert "wherry machine stop" in found[1]


@pytest.mark.parametrize(
    ("letters", "doing"),
    [
        ("T", Doing.STOPPED),
        ("Tt", Doing.STOPPED),
        ("TS", Doing.ASLEEP),
        ("SD", Doing.DISK),
        ("SDR", Doing.RUNNABLE),
        ("SI", Doing.ASLEEP),
    ],
)
def test_a_process_does_what_its_busiest_thread_does(letters: str, doing: Doing) -> None:
    assert of_letters(set(letters)) is doing


def test_a_programs_name_may_hold_anything() -> None:
    fields = ["S", *["0"] * 10, "30", "12", *["0"] * 20]
    assert of_stat(b"7 (a) R (b) " + " ".join(fields).encode()) == ("S", 42)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_a_process_that_a_signal_stops_is_seen_to_be() -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        found = activity(process.pid)
        assert found is not None
        assert found.doing in (Doing.ASLEEP, Doing.RUNNABLE, Doing.UNKNOWN)
        process.send_signal(signal.SIGSTOP)

        def is_stopped() -> bool:
            found = activity(process.pid)
            return found is not None and found.doing is Doing.STOPPED

        eventually("it is stopped", is_stopped)
        process.kill()
    assert activity(process.pid) is None


@pytest.mark.skipif(sys.platform != "linux", reason="QEMU's sockets are Unix's here")
def test_commands_on_a_stopped_qemu_fail_at_once_until_it_goes_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vitals, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(vitals, "SUSPICIOUS_SECONDS", 0.1)
    monkeypatch.setattr(vitals, "ANSWER_SECONDS", 0.1)

    async def work(world: World) -> None:
        machine = world.machine()
        await machine.ensure_running()
        running = machine._running
        assert running is not None
        pid = process_of(machine).pid
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(MachineError, match="stopped by a signal") as caught:
            await running.vm.qmp.execute("query-version", timeout=20)
        assert caught.value.hint is not None
        assert f"kill -CONT {pid}" in caught.value.hint
        with pytest.raises(MachineError, match="stopped by a signal"):
            await running.vm.qmp.execute("query-version")
        assert machine.inspect()["hung"]
        assert "stopped by a signal" in str(world.links[0].refusal)
        os.kill(pid, signal.SIGCONT)
        while running.vitals.hung is not None:
            await asyncio.sleep(0.01)
        assert world.links[0].refusal is None
        assert await running.vm.qmp.execute("query-version") == {}

    play(root, work)


@pytest.mark.skipif(sys.platform != "linux", reason="QEMU's sockets are Unix's here")
def test_a_silent_guest_whose_qemu_answers_is_waited_for(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vitals, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(vitals, "SURE_SECONDS", 0.05)

    async def work(world: World) -> None:
        machine = world.machine()
        await machine.ensure_running()
        running = machine._running
        assert running is not None
        world.links[0].silence = 1000.0
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert running.vitals.hung is None

    play(root, work)
