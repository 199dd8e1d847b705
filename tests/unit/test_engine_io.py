"""Execs and logs over the agent in memory; the engine process's own log."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import pytest
from engine_fakes import World, collect, play, until

from wherry.engine.daemon import BoundedHandler
from wherry.errors import AgentError, Conflict, NotFound, StartFailed

CONFIG = {"Cmd": ["ls"], "AttachStdout": True, "AttachStderr": True, "AttachStdin": True}


async def _text(world: World, **query: object) -> bytes:
    frames = world.engine.containers.logs("box", **query)  # type: ignore[arg-type]  # by name
    return b"".join([frame.payload async for frame in frames])


def test_an_exec_prints_and_has_its_code_when_its_output_ends(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box")
        execs = world.engine.execs
        execution = execs.create("box", CONFIG)
        attachment = await execs.start(execution.id)
        assert attachment is not None
        assert execs.get(execution.id).running
        await attachment.write(b"input")
        guest = world.agent.execs[execution.id]
        assert guest.stream is not None
        assert guest.stream.received == b"input"
        world.agent.exec_output(execution.id, b"out")
        guest.stream.finish()
        output = asyncio.ensure_future(collect(attachment))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not output.done()  # the exit is not known yet
        world.agent.exec_exit(execution.id, 3, end_stream=False)
        assert await output == {1: b"out"}
        ended = execs.get(execution.id)
        assert (ended.running, ended.exit_code, ended.pid) == (False, 3, None)
        with pytest.raises(Conflict, match="already run"):
            await execs.start(execution.id)
        assert [it for it in world.events() if it.startswith("exec")] == [
            "exec_create: ls",
            "exec_start: ls",
            "exec_die",
        ]

    play(tmp_path, scene)


def test_an_exec_that_ends_before_its_start_is_answered(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box")
        world.agent.on_exec = lambda it: world.agent.exec_exit(it.id, 4)
        execution = world.engine.execs.create("box", CONFIG)
        attachment = await world.engine.execs.start(execution.id)
        assert attachment is not None
        assert await collect(attachment) == {}
        assert world.engine.execs.get(execution.id).exit_code == 4

    play(tmp_path, scene)


def test_a_detached_exec_has_no_stream(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box")
        execution = world.engine.execs.create("box", CONFIG)
        assert await world.engine.execs.start(execution.id, detach=True) is None
        (asked,) = world.agent.asked("exec.start")
        assert (asked["stream"], asked["stdin"]) == (None, False)

    play(tmp_path, scene)


def test_an_exec_that_cannot_be_run_has_the_exit_code(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box")
        world.agent.start_error = AgentError(
            "exec: ENOENT", code="start_failed", data={"exit_code": 127, "errno": 2, "step": "exec"}
        )
        execution = world.engine.execs.create("box", CONFIG)
        with pytest.raises(StartFailed, match="executable file not found"):
            await world.engine.execs.start(execution.id)
        assert world.engine.execs.get(execution.id).exit_code == 127

    play(tmp_path, scene)


def test_execs_go_with_their_container_and_machine(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box")
        execs = world.engine.execs
        execution = execs.create("box", CONFIG)
        attachment = await execs.start(execution.id)
        assert attachment is not None
        world.agent.exec_exit(execution.id, 137)
        await collect(attachment)
        await world.engine.containers.remove("box", force=True)
        with pytest.raises(NotFound):
            execs.get(execution.id)
        await world.run("box2")
        lost = execs.create("box2", CONFIG)
        await execs.start(lost.id, detach=True)
        world.machine.die()
        assert execs.get(lost.id).exit_code == 137

    play(tmp_path, scene)


def test_ended_execs_are_forgotten_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wherry.engine.execs.KEEP_ENDED", 3)

    async def scene(world: World) -> None:
        await world.run("box")
        execs = world.engine.execs
        world.agent.on_exec = lambda it: world.agent.exec_exit(it.id, 0)
        for _ in range(8):
            execution = execs.create("box", CONFIG)
            await execs.start(execution.id, detach=True)
            await until(lambda: not execs.running(), "the exec's end")
        assert len(world.engine._state.execs()) <= 5

    play(tmp_path, scene)


def test_logs_by_stream_time_and_lines(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box")
        world.agent.output(container.id, b"one\ntwo\n", time_ns=10)
        world.agent.output(container.id, b"err\n", stream=2, time_ns=20)
        world.agent.output(container.id, b"three\n", time_ns=30)
        assert await _text(world) == b"one\ntwo\nerr\nthree\n"
        assert await _text(world, stdout=False) == b"err\n"
        assert await _text(world, since_ns=20) == b"err\nthree\n"
        assert await _text(world, until_ns=20) == b"one\ntwo\nerr\n"
        assert await _text(world, tail=2) == b"err\nthree\n"
        assert await _text(world, tail=3, stderr=False) == b"one\ntwo\nthree\n"
        assert await _text(world, tail=0) == b""
        assert await _text(world, tail=-1) == b"one\ntwo\nerr\nthree\n"

    play(tmp_path, scene)


def test_logs_go_on_until_the_container_ends(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box")
        world.agent.output(container.id, b"old\nlast\n")
        following = asyncio.ensure_future(_text(world, follow=True, tail=1))
        followers = world.agent.containers[container.id].followers
        await until(lambda: len(followers) == 1, "a follower")
        world.agent.output(container.id, b"new\n")
        world.agent.exit(container.id)
        assert await following == b"last\nnew\n"
        await world.engine.containers.waiter("box")
        assert await _text(world, follow=True) == b"old\nlast\nnew\n"

    play(tmp_path, scene)


def test_following_logs_ends_at_until(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.run("box")
        now = time.time_ns()
        world.agent.output(container.id, b"now\n", time_ns=now)
        assert await _text(world, follow=True, until_ns=now + 20_000_000) == b"now\n"

    play(tmp_path, scene)


def test_logs_start_a_machine_that_is_off_unless_nothing_ever_ran(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.create("box")
        assert await _text(world, follow=True) == b""
        assert world.machine.boots == 0
        await world.engine.containers.start("box")
        world.machine.die()
        assert await _text(world) == b""
        assert world.machine.boots == 2

    play(tmp_path, scene)


def test_facts_are_dockers(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box")
        await until(
            lambda: world.engine.version()["KernelVersion"] == "6.12.0", "the guest's facts"
        )
        info = await asyncio.to_thread(world.engine.info)
        assert (info["ContainersRunning"], info["NCPU"], info["MemTotal"]) == (1, 2, 1 << 30)
        assert info["Architecture"] == "x86_64"
        assert world.engine.version()["Arch"] == "amd64"
        assert world.engine.facts()["machine"] == "m"

    play(tmp_path, scene)


def test_the_engines_log_is_bounded_and_keeps_its_end(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    with path.open("a", encoding="utf-8") as stream:
        handler = BoundedHandler(stream, path, limit=2000, kept=500)
        logger = logging.Logger("bounded")
        logger.addHandler(handler)
        for number in range(1000):
            logger.warning("line %d", number)
    text = path.read_text(encoding="utf-8")
    assert len(text) <= 2100
    assert text.endswith("line 999\n")
    assert text.splitlines()[0].startswith("line ")
