"""Restarts, health, pausing and updates as the engine sees them; also after it was killed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from engine_fakes import World, play, until

from wherry.engine import sampler as sampler_module
from wherry.engine.model import Status
from wherry.errors import AgentError, Conflict, InvalidInput, NotFound, NotImplementedYet

ALWAYS = {"RestartPolicy": {"Name": "always"}}
CHECK = {"Test": ["CMD", "true"], "Interval": 1_000_000_000}


def box(world: World) -> Any:
    return world.engine.containers.get("box")


async def checked(world: World) -> Any:
    """A running container with a health check."""
    config = {"Image": "busybox", "Cmd": ["true"], "Healthcheck": CHECK}
    container = await world.engine.containers.create("box", config, {})
    await world.engine.containers.start("box")
    return container


def test_every_turn_of_a_restart_loop_is_an_event(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box", **ALWAYS)
        world.agent.exit(container.id, 3, restarting=True)
        await until(lambda: box(world).status is Status.RESTARTING, "the exit")
        assert box(world).running
        assert (box(world).exit_code, box(world).restart_count) == (3, 1)
        world.agent.start_again(container.id)
        await until(lambda: box(world).status is Status.RUNNING, "the restart")
        assert (box(world).exit_code, box(world).restart_count) == (0, 1)
        assert world.events() == ["create", "start", "die", "start"]
        assert world.machine.pins, "its layers must stay while it waits"

    play(tmp_path, scene)


def test_stop_of_one_that_waits_ends_it_without_another_die(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box", **ALWAYS)
        world.agent.exit(container.id, 3, restarting=True)
        await until(lambda: box(world).status is Status.RESTARTING, "the exit")
        await world.engine.containers.stop("box")
        assert (box(world).status, box(world).exit_code) == (Status.EXITED, 3)
        assert world.events() == ["create", "start", "die", "stop"]
        assert not world.machine.pins
        assert world.agent.containers[container.id].final

    play(tmp_path, scene)


def test_stop_that_meets_an_exit_goes_on_to_the_end(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box", **ALWAYS)
        # It ends by itself, and the policy has its turn, just as the signal is on its way.
        world.agent.on_signal = lambda it, _number: world.agent.exit(it.id, 1, restarting=True)
        stop = asyncio.ensure_future(world.engine.containers.stop("box"))
        await until(lambda: box(world).status is Status.RESTARTING, "the exit")
        assert not stop.done()
        world.agent.give_up(container.id)
        await stop
        assert box(world).status is Status.EXITED

    play(tmp_path, scene)


def test_restart_that_fails_is_the_end_with_its_reason(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box", **ALWAYS)
        world.agent.exit(container.id, 0, restarting=True)
        world.agent.give_up(container.id, exit_code=127, error="no such file")
        await until(lambda: box(world).status is Status.EXITED, "the end")
        assert (box(world).exit_code, box(world).error) == (127, "no such file")

    play(tmp_path, scene)


def test_waiters_hear_of_every_exit(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box", **ALWAYS)
        waiting = [world.engine.containers.waiter("box", it) for it in ("next-exit", "not-running")]
        world.agent.exit(container.id, 5, restarting=True)
        assert [(await it).code for it in waiting] == [5, 5]

    play(tmp_path, scene)


@pytest.mark.parametrize("turns", [1, 7])
def test_engine_killed_in_a_restart_loop_misses_no_turn(tmp_path: Path, turns: int) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box", **ALWAYS)
        world.agent.set_handler(None)  # kill -9
        for _ in range(turns):
            world.agent.exit(container.id, 1, restarting=True)
            world.agent.start_again(container.id)
        await world.kill_engine()
        assert world.events() == ["create", "start", *["die", "start"] * turns]
        assert (box(world).status, box(world).restart_count) == (Status.RUNNING, turns)
        assert world.machine.pins

    play(tmp_path, scene)


def test_engine_killed_while_one_waits_knows_it_waits(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box", **ALWAYS)
        world.agent.set_handler(None)
        world.agent.exit(container.id, 1, restarting=True)
        await world.kill_engine()
        assert box(world).status is Status.RESTARTING
        assert world.events() == ["create", "start", "die"]

    play(tmp_path, scene)


def test_engine_killed_while_health_flips_hears_of_each_change_once(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await checked(world)
        world.agent.becomes(container.id, "healthy")
        await until(lambda: box(world).health_status == "healthy", "healthy")
        world.agent.set_handler(None)
        world.agent.becomes(container.id, "unhealthy", 1)
        world.agent.becomes(container.id, "healthy")
        await world.kill_engine()
        changes = [it for it in world.events() if it.startswith("health")]
        assert changes == [f"health_status: {it}" for it in ("healthy", "unhealthy", "healthy")]
        assert box(world).health["changes"] == 3

    play(tmp_path, scene)


def test_pause_that_the_old_engine_did_not_record_is_found(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box")
        world.agent.containers[container.id].paused = True
        await world.kill_engine()
        assert box(world).status is Status.PAUSED
        assert world.events() == ["create", "start", "pause"]

    play(tmp_path, scene)


def test_health_begins_with_each_start_and_is_asked_for_by_inspect(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await checked(world)
        assert box(world).health_status == "starting"
        start = world.agent.asked("container.start")[0]
        assert start["health"]["process"]["args"] == ["true"]
        assert start["health"]["interval_ns"] == 1_000_000_000
        world.agent.containers[container.id].health = {
            "status": "starting",
            "failing_streak": 1,
            "changes": 0,
            "log": [{"start_ns": 1, "end_ns": 2, "exit_code": 1, "output": "no"}],
        }
        fresh = await world.engine.lives.with_fresh_health("box")
        assert fresh.health is not None
        assert fresh.health["log"][0]["output"] == "no"
        assert not [it for it in world.events() if it.startswith("health")]

    play(tmp_path, scene)


def test_pause_and_unpause_guard_their_states(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        lives, containers = world.engine.lives, world.engine.containers
        await world.create("box")
        with pytest.raises(Conflict, match="is not running"):
            await lives.pause("box")
        await containers.start("box")
        with pytest.raises(Conflict, match="is not paused"):
            await lives.unpause("box")
        await lives.pause("box")
        assert (box(world).status, box(world).running) == (Status.PAUSED, True)
        for operation, message in (
            (lives.pause("box"), "already paused"),
            (containers.start("box"), "paused container"),
            (containers.remove("box"), "is paused and must be unpaused first"),
            (containers.attach("box"), "unpause the container before attach"),
        ):
            with pytest.raises(Conflict, match=message):
                await operation
        with pytest.raises(Conflict, match="unpause the container before exec"):
            world.engine.execs.create("box", {"Cmd": ["true"]})
        await lives.unpause("box")
        assert world.events() == ["create", "start", "pause", "unpause"]

    play(tmp_path, scene)


def test_stop_of_a_paused_container_lets_it_go_on(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box")
        await world.engine.lives.pause("box")
        await world.engine.containers.stop("box")
        await until(lambda: box(world).status is Status.EXITED, "the end")
        assert "pause" in world.events()

    play(tmp_path, scene)


def test_update_tells_the_guest_limits_and_what_a_restart_begins_with(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box", Memory=64 << 20)
        changes = {"Memory": 32 << 20, "RestartPolicy": {"Name": "always"}}
        await world.engine.lives.update("box", changes)
        (asked,) = world.agent.asked("container.update")
        assert asked["resources"]["memory"] == {"limit": 32 << 20, "swap": 128 << 20}
        assert asked["start"]["restart"] == {"name": "always", "max": 0}
        assert asked["start"]["spec"]["linux"]["resources"]["memory"]["limit"] == 32 << 20
        assert box(world).host_config["Memory"] == 32 << 20
        assert world.events()[-1] == "update"
        await world.kill_engine()
        assert box(world).host_config["RestartPolicy"]["Name"] == "always"

    play(tmp_path, scene)


def test_update_that_the_kernel_refuses_changes_nothing(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box")
        world.agent.update_error = AgentError("set cpuset.cpus to 99", code="failed")
        with pytest.raises(AgentError):
            await world.engine.lives.update("box", {"CpusetCpus": "99"})
        assert "CpusetCpus" not in box(world).host_config
        assert "update" not in world.events()

    play(tmp_path, scene)


def test_oom_kill_is_told_exactly_once(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box")
        started_ns = world.agent.containers[container.id].started_ns
        payload = {"id": container.id, "started_ns": started_ns, "kills": 1}
        for kills in (1, 1, 2):  # the second one again, as after a crash of the agent
            world.agent.emit("container.oom", {**payload, "kills": kills})
        await until(lambda: box(world).oom_kills == 2, "the kills")
        assert box(world).oom_killed
        world.agent.exit(container.id, 137, oom=True)
        await until(lambda: not box(world).running, "the exit")
        assert box(world).oom_killed
        assert world.events().count("oom") == 2

    play(tmp_path, scene)


def test_output_that_was_lost_is_said_with_the_end(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box")
        world.agent.exit(container.id, 0)
        await until(lambda: not box(world).running, "the exit")
        world.agent.containers[container.id].running = True
        await world.engine.containers.start("box")
        it = world.agent.containers[container.id]
        world.agent.emit(
            "container.exit",
            {
                "id": container.id,
                "exit_code": 0,
                "started_ns": it.started_ns,
                "finished_ns": it.started_ns + 1,
                "log_bytes": 0,
                "log_lost": 77,
            },
        )
        await until(lambda: not box(world).running, "the exit")
        world.engine.events.flush()
        last = [it for it in world.engine._state.events_after(0) if it.action == "die"][-1]
        assert last.attributes["logLostBytes"] == "77"

    play(tmp_path, scene)


def test_machine_that_goes_leaves_what_waited_with_its_own_exit_code(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box", **ALWAYS)
        world.agent.exit(container.id, 9, restarting=True)
        await until(lambda: box(world).status is Status.RESTARTING, "the exit")
        world.machine.die()
        assert (box(world).status, box(world).exit_code) == (Status.EXITED, 9)
        assert world.events() == ["create", "start", "die"]

    play(tmp_path, scene)


def test_a_new_boot_starts_what_docker_would(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        containers = world.engine.containers
        for name, policy, stop in (
            ("always", "always", False),
            ("always-stopped", "always", True),
            ("unless", "unless-stopped", False),
            ("unless-stopped", "unless-stopped", True),
            ("none", "no", False),
        ):
            await world.run(name, RestartPolicy={"Name": policy})
            if stop:
                await containers.stop(name)
        await world.create("never-started", RestartPolicy={"Name": "always"})
        world.agent.boot_id = "first"
        world.machine.die()
        assert not [it for it in containers.list(all=True) if it.running]
        await world.machine.ensure_running()
        wanted = {"always", "always-stopped", "unless"}

        def running() -> set[str]:
            return {it.name for it in containers.list()}

        await until(lambda: running() == wanted, "what starts with the machine")
        await containers.stop("always")
        await world.kill_engine()  # the same boot: nothing is started again
        assert running() == wanted - {"always"}

    play(tmp_path, scene)


def test_no_log_can_be_read_where_none_is_kept(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box", LogConfig={"Type": "none"})
        assert world.agent.asked("container.start")[0]["log"] == {"driver": "none"}
        with pytest.raises(NotImplementedYet, match="does not support reading"):
            world.engine.containers.logs("box")
        with pytest.raises(NotImplementedYet):
            await world.engine.containers.attach("box", logs=True)

    play(tmp_path, scene)


def test_wrong_policies_are_refused_at_creation(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        for host_config, message in (
            ({"RestartPolicy": {"Name": "often"}}, "unknown policy 'often'"),
            ({"AutoRemove": True, **ALWAYS}, "can't create 'AutoRemove' container"),
            ({"LogConfig": {"Type": "json-file", "Config": {"x": "y"}}}, "unknown log opt 'x'"),
            ({"MemoryReservation": 1}, "reservation"),
        ):
            with pytest.raises(InvalidInput, match=message):
                await world.create("box", **host_config)
        assert world.store.held == {}

    play(tmp_path, scene)


def test_twenty_streams_of_statistics_ask_the_guest_once_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler_module, "INTERVAL", 0.01)

    async def scene(world: World) -> None:
        await world.run("one")
        await world.run("two")
        sampler = world.engine.sampler
        streams = [sampler.stream(name) for name in ("one", "two") for _ in range(10)]
        for stream in streams:
            await anext(stream)
        before = len(world.agent.asked("container.stats"))
        samples = await asyncio.gather(*(anext(stream) for stream in streams))
        assert all(sample is not None for _, sample in samples)
        asked = world.agent.asked("container.stats")[before:]
        assert len(asked) == 1
        assert len(asked[0]["ids"]) == 2
        await world.engine.containers.remove("one", force=True)
        with pytest.raises(StopAsyncIteration):
            await anext(streams[0])
        for stream in streams:
            await stream.aclose()
        with pytest.raises(NotFound):
            await anext(sampler.stream("one"))

    play(tmp_path, scene)
