"""A paused machine is not taken for a dead one: it says why it stands still, and goes on."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine_world import World, play, process_of

from wherry.errors import LinkError
from wherry.machine import Machine, MachineState, pausing
from wherry.machine.pausing import BY_HAND, DISK_FULL, StillPaused
from wherry.machine.qmp import Qmp
from wherry.osutil import ProcessIdentity, is_alive

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="QEMU's sockets are Unix's here")


@pytest.fixture
def root() -> Iterator[Path]:
    """A short path: it holds sockets."""
    path = Path(tempfile.mkdtemp(prefix="wp-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Whether the host's disk is full: it is while the list holds something."""
    state: list[str] = []
    monkeypatch.setattr(pausing, "has_room", lambda _disk: not state)
    monkeypatch.setattr("wherry.machine.adopt.has_room", lambda _disk: not state)
    monkeypatch.setattr(pausing, "LOOK_SECONDS", 0.02)
    return state


async def pause(machine: Machine, command: str) -> None:
    """Have QEMU pause its guest; return when the machine knows."""
    running = machine._running
    assert running is not None
    await running.vm.qmp.execute(command)
    await until(lambda: machine.paused is not None)


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def status_of(machine: Machine) -> str:
    running = machine._running
    assert running is not None
    return str((await running.vm.qmp.execute("query-status"))["status"])


def test_a_machine_paused_by_hand_says_so_and_goes_on_when_it_is_needed(root: Path) -> None:
    async def work(world: World) -> None:
        machine = world.machine()
        await machine.ensure_running()
        await pause(machine, "stop")
        assert machine.inspect()["paused"] == BY_HAND
        assert machine.state is MachineState.RUNNING
        assert any("paused" in notice for notice in machine.notices)
        await machine.ensure_running()
        assert (machine.paused, await status_of(machine)) == (None, "running")
        assert len(world.links) == 1

    play(root, work)


def test_a_machine_whose_disk_was_full_goes_on_by_itself(root: Path, disk: list[str]) -> None:
    async def work(world: World) -> None:
        machine = world.machine()
        await machine.ensure_running()
        disk.append("full")
        await pause(machine, "x-disk-full")
        assert machine.paused == DISK_FULL
        with pytest.raises(StillPaused, match="disk is full") as caught:
            await machine.ensure_running()
        assert "make room" in str(caught.value.hint)
        disk.clear()
        await until(lambda: machine.paused is None)
        assert await status_of(machine) == "running"

    play(root, work)


async def left_paused(world: World, disk: list[str]) -> ProcessIdentity:
    """The QEMU of an engine that has ended while its machine waited for room."""
    first = world.machine()
    await first.ensure_running()
    process = process_of(first)
    disk.append("full")
    await pause(first, "x-disk-full")
    await first.aclose()
    return process


def test_a_machine_that_waits_for_room_survives_its_engine(root: Path, disk: list[str]) -> None:
    async def work(world: World) -> None:
        process = await left_paused(world, disk)
        second = world.machine()
        assert not await second.adopt()
        assert (second.state, second.paused) == (MachineState.RUNNING, DISK_FULL)
        with pytest.raises(StillPaused):
            await second.ensure_running()
        assert is_alive(process)
        await second.aclose()
        disk.clear()
        third = world.machine()
        assert await third.adopt()
        assert process_of(third) == process
        assert await status_of(third) == "running"

    play(root, work)


def test_a_machine_that_was_left_paused_is_taken_over_when_there_is_room(
    root: Path, disk: list[str]
) -> None:
    async def work(world: World) -> None:
        process = await left_paused(world, disk)
        second = world.machine()
        assert not await second.adopt()
        disk.clear()
        await second.ensure_running()
        assert (process_of(second), second.paused) == (process, None)
        assert await status_of(second) == "running"

    play(root, work)


def test_a_machine_that_was_left_paused_can_be_stopped(root: Path, disk: list[str]) -> None:
    async def work(world: World) -> None:
        process = await left_paused(world, disk)
        second = world.machine()
        states: list[MachineState] = []
        second.on_state(states.append)
        assert not await second.adopt()
        await second.stop()
        assert not is_alive(process)
        assert (second.state, second.paused) == (MachineState.STOPPED, None)
        assert states == [MachineState.STOPPED]
        disk.clear()
        await second.ensure_running()

    play(root, work)


def test_a_machine_paused_while_no_engine_ran_goes_on_when_it_is_taken_over(root: Path) -> None:
    async def work(world: World) -> None:
        first = world.machine()
        await first.ensure_running()
        process = process_of(first)
        await first.aclose()
        qmp = await Qmp.connect(world.home.machine("m").qmp_socket, timeout=10)
        await qmp.execute("stop")
        await qmp.aclose()
        second = world.machine()
        assert await second.adopt()
        assert (process_of(second), await status_of(second)) == (process, "running")

    play(root, work)


def test_a_paused_machine_can_be_stopped(root: Path) -> None:
    async def work(world: World) -> None:
        machine = world.machine()
        await machine.ensure_running()
        world.links[0].answers["system.shutdown"] = LinkError("gone")
        await pause(machine, "stop")
        process = process_of(machine)
        stopping = asyncio.create_task(machine.stop(grace=0))
        await until(lambda: "system.shutdown" in world.links[0].methods)
        assert machine.paused is None
        running = machine._running
        assert running is not None
        await running.vm.quit()
        await stopping
        assert not is_alive(process)

    play(root, work)
