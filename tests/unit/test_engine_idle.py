"""Idle machines are put aside; snapshots of the machine; its clock; its disk's room."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from engine_fakes import World, play, until

from wherry.engine.clocks import GuestClock, Jumps
from wherry.engine.idling import Idle
from wherry.engine.model import Status
from wherry.errors import Conflict, InvalidInput, NotFound
from wherry.machine import MachineState
from wherry.settings import load_settings


class Clock:
    """Two clocks of a host: it sleeps, somebody sets the time, time goes by."""

    def __init__(self) -> None:
        self.wall, self.steady = 1000.0, 0.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds

    def sleep(self, seconds: float) -> None:
        self.wall += seconds

    def jumps(self) -> Jumps:
        return Jumps(lambda: self.wall, lambda: self.steady)


def idle_of(world: World, clock: Clock, after: float = 60.0) -> Idle:
    engine = world.engine
    return Idle(engine.machine, engine._registry, engine.presence, after, lambda: clock.steady)


def test_time_that_goes_by_is_no_jump() -> None:
    clock = Clock()
    jumps = clock.jumps()
    for seconds in (2.0, 2.3, 0.0, 6.0):
        clock.pass_by(seconds)
        assert not jumps.seen(2.0)


def test_a_host_that_slept_and_a_clock_that_was_set_are_seen_once() -> None:
    clock = Clock()
    jumps = clock.jumps()
    for seconds in (30.0, 0.6, -5.0):
        clock.sleep(seconds)
        clock.pass_by(2.0)
        assert jumps.seen(2.0)
        clock.pass_by(2.0)
        assert not jumps.seen(2.0)


def test_a_host_whose_steady_clock_goes_on_in_its_sleep_is_seen_too() -> None:
    clock = Clock()
    jumps = clock.jumps()
    clock.pass_by(600.0)
    assert jumps.seen(2.0)


def test_the_guest_is_told_the_time_at_a_handshake_after_a_sleep_and_after_a_pause(
    tmp_path: Path,
) -> None:
    async def scene(world: World) -> None:
        def told() -> int:
            return sum(method == "system.set_time" for method, _ in world.agent.calls)

        await world.machine.ensure_running()
        await until(lambda: told() == 1, "told at the handshake")
        world.machine.pause("it was paused through QMP")
        world.machine.pause(None)
        await until(lambda: told() == 2, "told when it goes on")
        clock = Clock()
        watch = GuestClock(world.engine.machine, world.engine._spawn, clock.jumps())
        clock.pass_by(2.0)
        watch.looked(2.0)
        clock.sleep(30.0)
        clock.pass_by(2.0)
        watch.looked(2.0)
        await until(lambda: told() == 3, "told after the sleep")

    play(tmp_path, scene)


def test_a_machine_is_due_when_nothing_has_run_for_so_long(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        clock = Clock()
        idle = idle_of(world, clock)
        assert not idle.due()  # it is off
        box = await world.run("box")
        assert not idle.due()
        await world.engine.containers.kill(box.id, "KILL")
        await until(
            lambda: world.engine.containers.get("box").status is Status.EXITED, "it has ended"
        )
        assert not idle.due()
        clock.pass_by(59.0)
        assert not idle.due()
        with world.engine.presence.working("GET /v1.47/events"):
            clock.pass_by(1.0)
            assert idle.due()
        with world.engine.presence.working("GET /containers/box/archive"):
            assert not idle.due()
        assert not idle.due()  # the wait begins anew
        clock.pass_by(60.0)
        assert idle.due()

    play(tmp_path, scene)


def test_it_is_put_aside_and_comes_back_for_what_needs_the_guest(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.machine.ensure_running()
        idle = idle_of(world, Clock())
        await idle.put_aside()
        assert world.machine.suspended and world.machine.state is MachineState.STOPPED
        for what in ("GET /v1.47/containers/json", "GET /_ping", "GET /images/json", "GET /info"):
            await idle.wake_for(what)
        assert world.machine.suspended
        await idle.wake_for("GET /v1.47/containers/box/logs")
        assert world.machine.link is not None and not world.machine.suspended

    play(tmp_path, scene)


def test_a_machine_that_is_off_is_not_started_by_a_question(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await idle_of(world, Clock()).wake_for("GET /containers/box/logs")
        assert world.machine.boots == 0

    play(tmp_path, scene)


def test_what_cannot_be_saved_is_stopped(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.machine.ensure_running()
        world.machine.can_save = False
        await idle_of(world, Clock()).put_aside()
        assert world.machine.state is MachineState.STOPPED and not world.machine.suspended

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("text", "seconds"), [("10m", 600.0), ("90s", 90.0), ("0", 0.0), ("false", 0.0)]
)
def test_the_setting_is_a_duration(tmp_path: Path, text: str, seconds: float) -> None:
    file = tmp_path / "config.yml"
    file.write_text(f"idle_stop: {text}\n")
    assert load_settings(file, {}).idle_stop == seconds


@pytest.mark.parametrize("text", ["soon", "10", "1s", "-5m", "true", "[1m]"])
def test_what_is_no_duration_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yml"
    file.write_text(f"idle_stop: {text}\n")
    with pytest.raises(InvalidInput, match="idle_stop must be a duration"):
        load_settings(file, {})


def test_a_snapshot_holds_what_its_containers_need_until_it_is_removed(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        box = await world.create("box")
        snapshots = world.engine.machine_snapshots
        facts = await snapshots.save("one")
        assert (facts["containers"], facts["running"], facts["memory"]) == (1, 0, False)
        await world.engine.containers.remove("box")
        assert f"snapshot:m:one:{box.id}" in world.store.held
        await world.kill_engine()
        assert f"snapshot:m:one:{box.id}" in world.store.held
        with pytest.raises(Conflict):
            await world.engine.machine_snapshots.save("one")
        await world.engine.machine_snapshots.remove("one")
        assert not any(holder.startswith("snapshot:") for holder in world.store.held)
        with pytest.raises(NotFound):
            await world.engine.machine_snapshots.remove("one")

    play(tmp_path, scene)


def test_after_a_restore_the_rows_are_those_of_then(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.create("earlier")
        await world.engine.machine_snapshots.save("one")
        await world.create("later")
        await world.engine.containers.remove("earlier")
        world.store.held.pop("container:m:earlier", None)
        asked: list[bool] = []
        world.engine.on_reopen_request = lambda: asked.append(True)
        then = await world.engine.machine_snapshots.restore("one")
        then()
        assert asked == [True]
        await world.kill_engine()
        names = [it.name for it in world.engine.containers.list(all=True)]
        assert names == ["earlier"]
        held = [holder for holder in world.store.held if holder.startswith("container:")]
        assert len(held) == 1

    play(tmp_path, scene)


def test_containers_that_go_on_with_a_snapshot_are_not_taken_for_dead(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box")
        await world.kill_engine()
        machine = world.machine
        assert world.engine.containers.get("box").status is Status.RUNNING
        machine.continued = False  # it was to go on, and was booted
        machine._state(MachineState.RUNNING)
        assert world.engine.containers.get("box").status is Status.EXITED
        await asyncio.sleep(0)

    play(tmp_path, scene)


def test_pruning_has_the_guest_trim_its_disk_once(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        def trims() -> int:
            return sum(method == "disk.trim" for method, _ in world.agent.calls)

        world.engine.trims.soon()  # the machine is off: nothing to do
        await world.machine.ensure_running()
        for _ in range(3):
            world.engine.trims.soon()
        await until(lambda: trims() == 1, "the guest is asked")

    play(tmp_path, scene)
