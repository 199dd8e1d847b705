"""What an engine does when the host's disk takes no more, and about a machine that stands still."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from engine_fakes import World, play, until

from wherry.engine import engine as engine_module
from wherry.engine import events as events_module
from wherry.engine import state as state_module
from wherry.engine.model import Event, Status
from wherry.errors import StorageError
from wherry.machine import MachineState


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(events_module, "_AGAIN_SECONDS", 0.01)


def takes_no_more(world: World, full: bool) -> None:
    """state.db can be read, not written."""
    world.engine._state._connection.execute(f"PRAGMA query_only = {int(full)}")


def stored(world: World, kind: str = "machine") -> list[Event]:
    return [event for event in world.engine._state.events_after(0) if event.type == kind]


def test_a_pause_of_the_machine_is_an_event_with_its_reason(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        world.machine.pause("the host's disk is full")
        world.machine.pause(None)
        await until(lambda: len(stored(world)) == 2, "both events")
        paused, went_on = stored(world)
        assert (paused.action, went_on.action) == ("pause", "unpause")
        assert paused.attributes["reason"] == "the host's disk is full"
        assert paused.actor_id == world.engine.machine_name

    play(tmp_path, scene)


def test_an_event_of_a_full_disk_is_stored_when_there_is_room(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        takes_no_more(world, True)
        world.machine.pause("the host's disk is full")
        follower = world.engine.events.subscribe(filters={"type": ["machine"]})
        takes_no_more(world, False)
        event = await anext(follower)
        assert event.action == "pause"
        follower.close()

    play(tmp_path, scene)


def test_a_machine_that_ends_while_the_disk_is_full_leaves_no_container_running(
    tmp_path: Path,
) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box")
        takes_no_more(world, True)
        world.machine.die()
        takes_no_more(world, False)
        containers = world.engine.containers
        await until(lambda: containers.get(container.id).status is Status.EXITED, "its end")
        assert "machine stopped" in containers.get(container.id).error

    play(tmp_path, scene)


def test_a_full_disk_keeps_no_machine_from_being_stopped_or_removed(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box")
        takes_no_more(world, True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(world.store, "release", out_of_space)
            world.engine.presence.machine_stopped_on_request()
            await world.engine.remove_machine(keep_disk=False)
        assert world.machine.state is MachineState.STOPPED
        takes_no_more(world, False)

    play(tmp_path, scene)


def out_of_space(_holder: str) -> None:
    raise StorageError("store.db: database or disk is full")


def test_what_cannot_be_stored_has_not_happened(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        takes_no_more(world, True)
        with pytest.raises(StorageError, match="cannot write the machine's state"):
            await world.create("box")
        assert world.engine.containers.list(all=True) == []
        takes_no_more(world, False)
        await world.create("box")

    play(tmp_path, scene)


def only_read(monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    """A disk on which nothing can be opened to be written, or one that has room again."""

    def fail(_path: Path) -> sqlite3.Connection:
        with sqlite3.connect(":memory:") as connection:
            connection.execute("PRAGMA query_only = ON")
            connection.execute("CREATE TABLE t (a)")
        raise AssertionError

    if refused:
        monkeypatch.setattr(state_module, "_connect", fail)
    else:
        monkeypatch.undo()


def test_an_engine_on_a_disk_that_takes_nothing_shows_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box")
        world.machine.link = None  # behind the engine's back
        only_read(monkeypatch, True)
        await world.kill_engine()
        containers = world.engine.containers
        assert containers.get(container.id).status is Status.EXITED
        with pytest.raises(StorageError, match="cannot write the machine's state"):
            await containers.remove("box")
        assert [it.name for it in containers.list(all=True)] == ["box"]
        only_read(monkeypatch, False)
        await containers.remove("box")
        assert containers.list(all=True) == []

    play(tmp_path, scene)
