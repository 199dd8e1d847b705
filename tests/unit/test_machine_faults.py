"""QEMUs that are of no use: they die at once, hang, or talk nonsense. A start fails with one error
that says so, in time, and leaves nothing running."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine_world import World, play, process_of

from wherry.errors import BootFailed
from wherry.machine import MachineState
from wherry.machine.boot import Deadlines
from wherry.machine.find import Qemu

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shell scripts")

PATIENCE = Deadlines(spawned=0.5, kernel=0.5, init=0.5, agent=0.5)

BABBLE = """
import os, socket, sys
words = " ".join(sys.argv)
fd = int(words.split("id=qmp,fd=")[1].split(",")[0])
connection, _ = socket.socket(fileno=fd).accept()
connection.sendall({text!r})
while connection.recv(4096):
    connection.sendall({text!r})
"""


@pytest.fixture
def root() -> Iterator[Path]:
    """A short path: it holds sockets."""
    path = Path(tempfile.mkdtemp(prefix="wx-"))
    yield path
    shutil.rmtree(path)


def impostor(world: World, script: str) -> None:
    """Have the world's machines started by a script that notes its pid."""
    binary = world.root / "impostor"
    binary.write_text(f"#!/bin/sh\necho $$ > {world.root}/pid\n{script}\n")
    binary.chmod(0o755)
    world.qemu = Qemu(binary=binary, version=(8, 0, 0), arch="amd64")


async def failure(world: World) -> BootFailed:
    """How a start ends; nothing of it is left."""
    machine = world.machine(deadlines=PATIENCE)
    with pytest.raises(BootFailed) as caught:
        await machine.ensure_running()
    assert machine.state is MachineState.FAILED
    assert not world.home.machine("m").qemu_record.exists()
    pid = world.root / "pid"
    if pid.exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
    return caught.value


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 7", "QEMU ended, status 7"),
        ("exit 0", "QEMU ended"),
        ("kill -SEGV $$", "signal 11"),
        ("kill -KILL $$", "signal 9"),
    ],
)
def test_a_qemu_that_dies_without_a_word(root: Path, script: str, words: str) -> None:
    async def work(world: World) -> None:
        impostor(world, script)
        error = await failure(world)
        assert error.phase == "spawned"
        assert words in error.message
        assert "(phase spawned)" in error.message
        assert error.hint

    play(root, work)


@pytest.mark.parametrize("script", ["exec sleep 1000", "trap '' TERM HUP INT; exec sleep 1000"])
def test_a_qemu_that_never_answers(root: Path, script: str) -> None:
    async def work(world: World) -> None:
        impostor(world, script)
        error = await failure(world)
        assert error.phase == "spawned"
        assert error.hint

    play(root, work)


@pytest.mark.parametrize(
    "text",
    [
        b"\x00" * 4096,
        b"hello\n",
        b"[]\n",
        b'{"QMP": 1}\n',
        b'{"QMP": {"version": {}, "capabilities": []}}\n{"return": "x"\n',
        b'{"error": {"class": "GenericError", "desc": "no"}}\n',
        b'{"QMP": {"version": {"qemu": {"major": 8}}, "capabilities": []}}\n{"return": {}}\n',
    ],
)
def test_a_qemu_that_talks_nonsense(root: Path, text: bytes) -> None:
    async def work(world: World) -> None:
        (world.root / "babble.py").write_text(BABBLE.format(text=text))
        impostor(world, f'exec "{sys.executable}" -S "{world.root}/babble.py" "$@"')
        error = await failure(world)
        assert error.phase == "spawned"

    play(root, work)


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"just text\n", b"#!/no/such/interpreter\n"])
def test_a_qemu_that_is_no_program(root: Path, content: bytes) -> None:
    async def work(world: World) -> None:
        binary = world.root / "no-program"
        binary.write_bytes(content)
        binary.chmod(0o755)
        world.qemu = Qemu(binary=binary, version=(8, 0, 0), arch="amd64")
        error = await failure(world)
        assert error.phase == "spawned"
        assert str(binary) in error.message

    play(root, work)


def test_a_machine_starts_after_a_qemu_that_did_not(root: Path) -> None:
    async def work(world: World) -> None:
        genuine = world.qemu
        impostor(world, "exit 1")
        await failure(world)
        world.qemu = genuine
        machine = world.machine()
        await machine.ensure_running()
        assert machine.state is MachineState.RUNNING

    play(root, work)


def test_a_qemu_that_hangs_is_ended_by_a_stop_in_seconds(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wherry.machine.ending._ANSWER_TIMEOUT", 0.2)

    async def work(world: World) -> None:
        machine = world.machine()
        await machine.ensure_running()
        process = process_of(machine)
        os.kill(process.pid, signal.SIGSTOP)
        async with asyncio.timeout(20):
            await machine.stop()
        assert machine.state is MachineState.STOPPED
        with pytest.raises(ProcessLookupError):  # reaped, too
            os.kill(process.pid, 0)
        assert "system.shutdown" not in world.links[0].methods

    play(root, work)
