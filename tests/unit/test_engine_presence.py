"""Whether an engine may give way, and whether it starts its machine for its containers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from engine_fakes import World, play, until

from wherry.engine.model import Status
from wherry.errors import Conflict

ALWAYS = {"RestartPolicy": {"Name": "always"}}
YIELD = "POST /wherry/v1/engine/yield"


def test_the_machine_comes_up_for_a_container_that_restarts(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box", **ALWAYS)
        world.machine.die()
        await world.kill_engine()
        world.agent.boot_id = "the next"
        world.engine.machine_if_wanted()
        box = world.engine.containers.get
        await until(lambda: box("box").status is Status.RUNNING, "the container is back")
        assert world.machine.boots == 1

    play(tmp_path, scene)


def test_it_stays_off_without_such_a_container(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box")
        world.machine.die()
        await world.kill_engine()
        await world.engine.presence.bring_up()
        assert world.machine.boots == 0

    play(tmp_path, scene)


def test_a_machine_that_was_stopped_by_hand_stays_off_until_it_is_needed(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box", **ALWAYS)
        world.engine.presence.machine_stopped_on_request()
        world.machine.die()
        await world.kill_engine()
        await world.engine.presence.bring_up()
        assert world.machine.boots == 0
        await world.machine.ensure_running()  # somebody needs it
        world.machine.die()
        await world.kill_engine()
        await world.engine.presence.bring_up()
        assert world.machine.boots == 1

    play(tmp_path, scene)


def test_a_running_machine_is_not_started_again(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box", **ALWAYS)
        await world.kill_engine()
        await world.engine.presence.bring_up()
        assert world.machine.boots == 0

    play(tmp_path, scene)


def test_an_engine_gives_way_when_only_that_was_asked(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        presence = world.engine.presence
        with presence.working(YIELD):
            presence.give_way(YIELD, sys.executable)
            with (
                presence.working("POST /images/create"),
                presence.working("GET /events"),
                pytest.raises(Conflict, match=r"POST /images/create, GET /events$"),
            ):
                presence.give_way(YIELD, sys.executable)
            presence.give_way(YIELD, sys.executable)

    play(tmp_path, scene)


def test_a_service_of_another_installation_is_not_restarted_in_vain(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        world.engine.presence.activated = True
        with pytest.raises(Conflict, match=sys.executable) as caught:
            world.engine.presence.give_way(YIELD, "/another/python")
        assert "wherry service install" in str(caught.value.hint)
        world.engine.presence.give_way(YIELD, sys.executable)

    play(tmp_path, scene)
