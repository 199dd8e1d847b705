"""A new engine after the old one's death, and an engine after its machine's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from engine_fakes import World, collect, play, until

from wherry.engine.model import ExitStatus, Status
from wherry.errors import MachineError
from wherry.paths import Home


def test_running_containers_are_taken_over_with_all_their_output(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box")
        world.agent.output(container.id, b"before ")
        await world.kill_engine()
        assert world.engine.containers.get("box").running
        assert world.machine.pins == {container.id: list(container.layers)}
        attachment = await world.engine.containers.attach("box", logs=True)
        waiter = world.engine.containers.waiter("box")
        world.agent.output(container.id, b"after")
        world.agent.exit(container.id, 9)
        assert await collect(attachment) == {1: b"before after"}
        assert await waiter == ExitStatus(9)

    play(tmp_path, scene)


def test_an_exit_while_no_engine_ran_is_told_to_the_next(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        kept = await world.run("kept")
        gone = await world.run("gone", AutoRemove=True)
        world.agent.set_handler(None)
        world.agent.exit(kept.id, 3)
        world.agent.exit(gone.id, 4)
        await world.kill_engine()
        container = world.engine.containers.get("kept")
        assert (container.status, container.exit_code) == (Status.EXITED, 3)
        assert [it.name for it in world.engine.containers.list(all=True)] == ["kept"]
        await until(lambda: not world.agent.unacknowledged, "acknowledgements")
        assert world.events().count("die") == 2
        await until(lambda: gone.id not in world.agent.containers, "the guest's removal")

    play(tmp_path, scene)


def test_a_start_that_the_old_engine_did_not_record_is_found(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box")
        with world.engine._state.transaction() as transaction:
            transaction._connection.execute("UPDATE containers SET status='created'")
        await world.kill_engine()
        assert world.engine.containers.get("box").running
        world.agent.exit(container.id, 1)
        assert await world.engine.containers.waiter("box") == ExitStatus(1)

    play(tmp_path, scene)


def test_containers_of_a_machine_that_stopped_meanwhile_are_lost(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box")
        world.machine.link = None
        await world.kill_engine()
        container = world.engine.containers.get("box")
        assert (container.status, container.exit_code) == (Status.EXITED, 137)
        assert "machine stopped" in container.error

    play(tmp_path, scene)


def test_what_the_guest_does_not_know_is_lost(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box")
        world.agent.containers.clear()
        await world.kill_engine()
        assert world.engine.containers.get("box").exit_code == 137

    play(tmp_path, scene)


def test_containers_end_with_their_machine(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box")
        attachment = await world.engine.containers.attach("box")
        waiter = world.engine.containers.waiter("box")
        output = asyncio.ensure_future(collect(attachment))
        await asyncio.sleep(0)
        world.machine.die()
        assert await waiter == ExitStatus(137, "the machine stopped")
        with pytest.raises(MachineError):
            await output
        await world.engine.containers.start("box")
        assert world.machine.boots == 2
        assert world.engine.containers.get(container.id).error == ""

    play(tmp_path, scene)


def test_images_held_for_containers_that_are_gone_are_released(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.create("box")
        (held,) = world.store.held.values()
        Home(world.home).machine("other").root.mkdir()
        others = {"container:other:x": held, "container:no-machine:x": held, "build:1": held}
        world.store.held |= {"container:m:gone": held, **others}
        await world.kill_engine()
        assert set(world.store.held) == {
            f"container:m:{container.id}",
            "container:other:x",
            "build:1",
        }

    play(tmp_path, scene)


def test_an_exec_is_taken_over(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box")
        execs = world.engine.execs
        ended, running, lost = (execs.create("box", {"Cmd": ["x"]}).id for _ in range(3))
        for exec_id in (ended, running, lost):
            await execs.start(exec_id, detach=True)
        world.agent.set_handler(None)
        world.agent.exec_exit(ended, 5)
        await world.kill_engine()
        execs = world.engine.execs
        assert execs.get(ended).exit_code == 5
        assert execs.get(running).running
        world.agent.exec_exit(running, 6)
        await until(lambda: execs.get(running).exit_code == 6, "the exec's exit")

    play(tmp_path, scene)


def test_what_containers_hold_is_held_again_when_the_store_forgot_it(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.create("box")
        (holder,) = world.store.held
        world.store.held.clear()
        await world.kill_engine()
        assert list(world.store.held) == [holder]
        assert holder.endswith(container.id)

    play(tmp_path, scene)
