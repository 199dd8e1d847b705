"""The life of a container as the engine tells it, with a machine and an agent in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from engine_fakes import World, collect, play, until

from wherry.engine.model import ExitStatus, Status
from wherry.errors import (
    AgentError,
    Conflict,
    ImageNotFound,
    InvalidInput,
    LinkError,
    NotFound,
    NotModified,
    StartFailed,
)
from wherry.machine import MachineState


def test_a_container_runs_prints_and_exits(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        containers = world.engine.containers
        container = await world.create("box")
        attachment = await containers.attach("box", stdout=True, stderr=True)
        waiter = containers.waiter("box", "next-exit")
        await containers.start("box")
        assert containers.get("box").status is Status.RUNNING
        world.agent.output(container.id, b"out")
        world.agent.output(container.id, b"err", stream=2)
        world.agent.exit(container.id, 3)
        assert await collect(attachment) == {1: b"out", 2: b"err"}
        assert await waiter == ExitStatus(3)
        ended = containers.get("box")
        assert (ended.status, ended.exit_code, ended.pid) == (Status.EXITED, 3, None)
        assert ended.log_bytes == len(world.agent.containers[container.id].log)
        assert world.events() == ["create", "attach", "start", "die"]

    play(tmp_path, scene)


def test_output_and_exit_before_the_start_is_answered_are_not_lost(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        def at_once(container: object) -> None:
            world.agent.output(created.id, b"quick")
            world.agent.exit(created.id, 7)

        world.agent.on_start = at_once
        created = await world.create("box", AutoRemove=True)
        attachment = await world.engine.containers.attach("box")
        waiter = world.engine.containers.waiter("box", "removed")
        await world.engine.containers.start("box")
        assert await collect(attachment) == {1: b"quick"}
        assert await waiter == ExitStatus(7)
        assert world.events() == ["create", "attach", "start", "die", "destroy"]

    play(tmp_path, scene)


def test_the_exit_may_be_told_before_the_start_is_answered(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        created = await world.create("box", AutoRemove=True)
        attachment = await world.engine.containers.attach("box")
        original = world.agent.call

        async def slow(method: str, params: dict[str, object]) -> object:
            result = await original(method, params)  # type: ignore[arg-type]  # JSON
            if method == "container.start":
                world.agent.output(created.id, b"early")
                world.agent.exit(created.id, 5)
                await until(lambda: not world.agent.unacknowledged, "the exit's acknowledgement")
            return result

        world.agent.call = slow  # type: ignore[method-assign]  # an agent that answers late
        waiter = world.engine.containers.waiter("box", "removed")
        await world.engine.containers.start("box")
        assert await waiter == ExitStatus(5)
        assert await collect(attachment) == {1: b"early"}
        with pytest.raises(NotFound):
            world.engine.containers.get("box")

    play(tmp_path, scene)


def test_an_attach_that_overtakes_the_start_is_repeated(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        world.agent.attach_errors = [AgentError("unknown", code="not_found")]
        created = await world.create("box")
        attachment = await world.engine.containers.attach("box")
        world.agent.on_start = lambda _container: world.agent.output(created.id, b"first")
        await world.engine.containers.start("box")
        output = asyncio.ensure_future(collect(attachment))
        await until(lambda: len(world.agent.asked("container.attach")) == 2, "the second attach")
        world.agent.exit(created.id)
        assert await output == {1: b"first"}

    play(tmp_path, scene)


def test_the_attach_follows_the_start_without_waiting_for_its_answer(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        world.agent.hold_start = asyncio.Event()
        await world.create("box")
        await world.engine.containers.attach("box")
        world.agent.attach_errors = [AgentError("unknown", code="not_found")]
        start = asyncio.ensure_future(world.engine.containers.start("box"))
        await until(lambda: bool(world.agent.asked("container.attach")), "the attach")
        methods = [method for method, _ in world.agent.calls]
        assert methods.index("container.start") < methods.index("container.attach")
        assert not start.done()
        world.agent.hold_start.set()
        await start

    play(tmp_path, scene)


def test_a_second_run_is_attached_from_where_its_own_log_begins(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        containers = world.engine.containers
        container = await world.run("box")
        world.agent.output(container.id, b"first run")
        world.agent.exit(container.id)
        await containers.waiter("box")
        attachment = await containers.attach("box")
        replayed = await containers.attach("box", logs=True)
        await containers.start("box")
        world.agent.output(container.id, b"second run")
        await until(lambda: len(world.agent.containers[container.id].followers) == 2, "followers")
        world.agent.exit(container.id)
        assert await collect(attachment) == {1: b"second run"}
        assert await collect(replayed) == {1: b"first runsecond run"}

    play(tmp_path, scene)


def test_wait_conditions(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        containers = world.engine.containers
        container = await world.create("box")
        assert await containers.waiter("box", "not-running") == ExitStatus(0)
        next_exit = containers.waiter("box", "next-exit")
        removed = containers.waiter("box", "removed")
        await containers.start("box")
        running = containers.waiter("box", "")
        assert not running.done()
        world.agent.exit(container.id, 4)
        assert await running == await next_exit == ExitStatus(4)
        assert not removed.done()
        await containers.remove("box")
        assert await removed == ExitStatus(4)
        with pytest.raises(NotFound):
            containers.waiter("box")
        await world.create("box2")
        with pytest.raises(InvalidInput, match="condition"):
            containers.waiter("box2", "asleep")

    play(tmp_path, scene)


def test_operations_in_the_wrong_state_are_conflicts(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        containers = world.engine.containers
        await world.create("box")
        with pytest.raises(Conflict, match="is not running"):
            await containers.kill("box", "TERM")
        with pytest.raises(NotModified):
            await containers.stop("box")
        with pytest.raises(Conflict, match="is not running"):
            await containers.resize("box", 24, 80)
        with pytest.raises(Conflict, match="is not running"):
            world.engine.execs.create("box", {"Cmd": ["true"]})
        await containers.start("box")
        with pytest.raises(NotModified):
            await containers.start("box")
        with pytest.raises(Conflict, match="container is running"):
            await containers.remove("box")
        assert containers.get("box").running

    play(tmp_path, scene)


def test_a_name_is_used_once(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        first = await world.create("web")
        with pytest.raises(Conflict, match=f'"/web" is already in use by container "{first.id}"'):
            await world.create("/web")
        other = await world.create("db")
        with pytest.raises(Conflict):
            await world.engine.containers.rename("db", "web")
        await world.engine.containers.rename("web", "old")
        await world.engine.containers.rename(other.id, "web")
        assert world.engine.containers.get("web").id == other.id
        with pytest.raises(InvalidInput, match="Invalid container name"):
            await world.create("a b")
        assert len(world.store.held) == 2  # a creation that failed holds no image

    play(tmp_path, scene)


def test_a_container_is_found_by_id_name_and_prefix(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        get = world.engine.containers.get
        created = [await world.create() for _ in range(17)]
        first = created[0]
        assert get(first.id) == get(first.name) == get(f"/{first.name}") == get(first.id[:20])
        with pytest.raises(InvalidInput, match="multiple IDs found"):
            digits = [container.id[0] for container in created]
            get(next(digit for digit in digits if digits.count(digit) > 1))
        with pytest.raises(NotFound, match="No such container: nope"):
            get("nope")

    play(tmp_path, scene)


def test_stop_sends_the_stop_signal_then_kills(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box")
        guest = world.agent.containers[container.id]
        world.agent.on_signal = lambda it, number: (
            world.agent.die_of_signal(it, number) if number == 9 else None
        )
        await world.engine.containers.stop("box", timeout=0, signal="INT")
        assert guest.signals == [2, 9]
        ended = world.engine.containers.get("box")
        assert (ended.status, ended.exit_code) == (Status.EXITED, 137)
        assert world.events()[-4:] == ["kill", "kill", "die", "stop"]

    play(tmp_path, scene)


def test_stop_waits_for_a_start_that_is_under_way(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        world.agent.hold_start = asyncio.Event()
        await world.create("box")
        start = asyncio.ensure_future(world.engine.containers.start("box"))
        await until(lambda: bool(world.agent.asked("container.start")), "the start")
        stop = asyncio.ensure_future(world.engine.containers.stop("box"))
        world.agent.hold_start.set()
        await asyncio.gather(start, stop)
        assert world.engine.containers.get("box").status is Status.EXITED

    play(tmp_path, scene)


def test_restart_keeps_a_container_that_removes_itself(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box", AutoRemove=True)
        await world.engine.containers.restart("box")
        again = world.engine.containers.get("box")
        assert again.running
        assert again.started_ns != container.started_ns
        assert "destroy" not in world.events()

    play(tmp_path, scene)


def test_remove_by_force_kills_first(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box")
        await world.engine.containers.remove("box", force=True)
        assert world.agent.containers[container.id].signals == [9]
        await until(lambda: not world.agent.containers, "the guest's removal")
        await until(lambda: not world.engine._state.removals(), "the note's removal")
        assert world.store.held == {}
        assert world.machine.pins == {}
        assert world.events()[-2:] == ["die", "destroy"]

    play(tmp_path, scene)


def test_a_start_whose_answer_is_lost_after_the_exit_was_told_fails_clearly(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        created = await world.create("box", AutoRemove=True)
        original = world.agent.call

        async def cut(method: str, params: dict[str, object]) -> object:
            result = await original(method, params)  # type: ignore[arg-type]  # JSON
            if method == "container.start":
                world.agent.exit(created.id, 5)
                await until(lambda: not world.agent.unacknowledged, "the exit's acknowledgement")
                raise LinkError("the agent was restarted meanwhile")
            return result

        world.agent.call = cut  # type: ignore[method-assign]  # an agent that is killed
        with pytest.raises(LinkError, match="restarted"):
            await world.engine.containers.start("box")
        assert world.engine.containers.list(all=True) == []

    play(tmp_path, scene)


def test_the_guest_keeps_a_removed_container_while_somebody_reads_its_output(
    tmp_path: Path,
) -> None:
    async def scene(world: World) -> None:
        container = await world.create("box", AutoRemove=True)
        attachment = await world.engine.containers.attach("box")
        await world.engine.containers.start("box")
        world.agent.output(container.id, b"late reader")
        removed = world.engine.containers.waiter("box", "removed")
        world.agent.exit(container.id)
        await removed
        for _ in range(20):
            await asyncio.sleep(0)
        assert container.id in world.agent.containers
        assert await collect(attachment) == {1: b"late reader"}
        await until(lambda: not world.agent.containers, "the guest's removal")

    play(tmp_path, scene)


def test_a_machine_is_not_started_to_remove(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box")
        world.agent.exit(container.id)
        await world.engine.containers.waiter("box")
        world.machine.die()
        await world.engine.containers.remove("box")
        assert world.machine.boots == 1
        assert world.engine._state.removals() == [container.id]
        await world.run("box2")
        await until(lambda: bool(world.agent.asked("container.remove")), "the removal")
        assert world.agent.asked("container.remove") == [{"id": container.id}]

    play(tmp_path, scene)


def test_a_machine_that_is_stopping_is_not_asked_to_remove(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box", AutoRemove=True)
        world.machine.state = MachineState.STOPPING
        removed = world.engine.containers.waiter("box", "removed")
        world.agent.exit(container.id, 143)
        await removed
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert world.agent.asked("container.remove") == []
        world.machine.die()
        await world.run("box2")
        await until(lambda: bool(world.agent.asked("container.remove")), "the removal")

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("exit_code", "errno", "words"),
    [
        (127, 2, 'exec: "true": executable file not found in $PATH'),
        (126, 13, 'exec: "true": permission denied'),
        (125, 1, "mount proc on /proc: EPERM"),
    ],
)
def test_a_failed_start_says_why_in_dockers_words(
    tmp_path: Path, exit_code: int, errno: int, words: str
) -> None:
    async def scene(world: World) -> None:
        data = {"exit_code": exit_code, "errno": errno, "step": "x"}
        world.agent.start_error = AgentError(
            "mount proc on /proc: EPERM", code="start_failed", data=data
        )
        await world.create("box")
        attachment = await world.engine.containers.attach("box")
        with pytest.raises(StartFailed) as caught:
            await world.engine.containers.start("box")
        assert words in caught.value.message
        assert caught.value.exit_code == exit_code
        assert await collect(attachment) == {}
        container = world.engine.containers.get("box")
        assert (container.status, container.exit_code) == (Status.CREATED, exit_code)
        assert container.error == caught.value.message
        assert world.machine.pins == {}
        await world.create("gone", AutoRemove=True)
        removed = world.engine.containers.waiter("gone", "removed")
        with pytest.raises(StartFailed):
            await world.engine.containers.start("gone")
        assert await removed == ExitStatus(exit_code)

    play(tmp_path, scene)


def test_a_client_that_leaves_does_not_stop_a_start(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        world.agent.hold_start = asyncio.Event()
        await world.create("box")
        start = asyncio.ensure_future(world.engine.containers.start("box"))
        await until(lambda: bool(world.agent.asked("container.start")), "the start")
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        world.agent.hold_start.set()
        await until(lambda: world.engine.containers.get("box").running, "the start's end")

    play(tmp_path, scene)


def test_a_missing_image_and_a_missing_command_are_errors(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        containers = world.engine.containers
        with pytest.raises(ImageNotFound):
            await containers.create("box", {"Image": "nope"}, {})
        with pytest.raises(InvalidInput, match="6MB"):
            await containers.create("box", {"Image": "busybox"}, {"Memory": 1000})
        with pytest.raises(InvalidInput, match="no command"):
            await containers.create("box", {"Image": "busybox", "Entrypoint": [""]}, {})
        assert containers.list(all=True) == []
        assert world.store.held == {}

    play(tmp_path, scene)


def test_layers_are_plugged_and_pinned_while_it_runs(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box")
        assert world.machine.attached == list(container.layers)
        assert world.machine.pins == {container.id: list(container.layers)}
        (asked,) = world.agent.asked("container.start")
        assert asked["layers"] == list(container.layers)
        world.agent.exit(container.id)
        await world.engine.containers.waiter("box")
        assert world.machine.pins == {}

    play(tmp_path, scene)


def test_listing_shows_the_running_ones_the_newest_first(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        containers = world.engine.containers
        await world.create("one")
        await world.run("two")
        await world.run("three")

        def names(**how: object) -> list[str]:
            return [container.name for container in containers.list(**how)]  # type: ignore[arg-type]  # by name

        assert names() == ["three", "two"]
        assert names(all=True) == ["three", "two", "one"]
        assert names(limit=1) == ["three"]
        assert names(filters={"status": ["created"]}) == ["one"]
        assert names(all=True, filters={"name": ["t"]}) == ["three", "two"]
        assert names(filters={"ancestor": ["busybox"]}) == ["three", "two"]
        assert names(filters={"before": ["two"]}) == ["one"]
        with pytest.raises(InvalidInput, match="invalid filter"):
            names(filters={"nope": ["x"]})

    play(tmp_path, scene)


def test_the_built_in_image_is_imported_when_it_is_asked_for(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        world.machine.busybox = tmp_path / "busybox"
        await world.engine.containers.create("box", {"Image": "localhost/busybox"}, {})
        await world.engine.images.pull("localhost/busybox:latest")
        assert world.store.imported == [(tmp_path / "busybox", "localhost/busybox:latest")]
        with pytest.raises(ImageNotFound):
            await world.engine.images.resolve("localhost/other")

    play(tmp_path, scene)


def test_an_image_that_a_container_has_is_not_removed(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box")
        with pytest.raises(Conflict, match="cannot be forced"):
            await world.engine.images.remove("busybox", force=True)
        world.agent.exit(container.id)
        await world.engine.containers.waiter("box")
        with pytest.raises(Conflict, match="must be forced"):
            await world.engine.images.remove("busybox")
        await world.engine.images.remove("busybox", force=True)
        await world.engine.containers.start("box")  # its layers are held

    play(tmp_path, scene)
