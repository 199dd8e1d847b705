"""An agent that answers garbage: a clear error, no hang, no Python error, and no harm to what is
known. On the socket (bytes that are no frames) and behind it (answers of another shape)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from engine_fakes import World, play

from wherry.engine.model import Status
from wherry.errors import LinkError, WherryError
from wherry.link import local_socket, open_link
from wherry_guest import wire

Talk = Callable[[], Iterator[bytes]]

DEADLINE = 0.2


def guest_frames() -> bytes:
    """What a guest says first."""
    guest = wire.Connection(wire.Role.GUEST, {"agent": {"version": "1"}})
    guest.begin()
    return b"".join(guest.take(1 << 16))


def swapped(data: bytes, *, seed: int) -> bytes:
    """`data` with some bytes of each frame changed."""
    rng = random.Random(seed)
    changed = bytearray(data)
    for _ in range(1 + len(data) // 16):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


TALKS: dict[str, Talk] = {
    "nothing": lambda: iter(()),
    "zeros": lambda: repeat(b"\0" * 65536, 200),
    "noise": lambda: (random.Random(n).randbytes(65536) for n in range(100)),
    "a web server": lambda: iter([b"HTTP/1.1 400 Bad Request\r\n\r\n" * 100]),
    "a shell": lambda: repeat(b"\r\nlogin: ", 2000),
    "JSON": lambda: repeat(b'{"result": {}}\n', 2000),
    "broken frames": lambda: (swapped(guest_frames(), seed=n) for n in range(200)),
    "its first word for ever": lambda: repeat(guest_frames(), 200),
}


@pytest.mark.skipif(sys.platform == "win32", reason="a Unix socket")
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("leaves", [False, True])
def test_a_link_to_a_stranger_ends_with_an_error_in_time(
    tmp_path: Path, talk: str, leaves: bool
) -> None:
    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for piece in TALKS[talk]():
                writer.write(piece)
                await writer.drain()
            if not leaves:
                await reader.read(-1)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def main() -> None:
        path = tmp_path / "agent.sock"
        server = await asyncio.start_unix_server(stranger, path)
        try:
            async with asyncio.timeout(20):
                with pytest.raises(LinkError, match="did not answer within") as caught:
                    await open_link(local_socket(path), deadline=DEADLINE)
            assert caught.value.hint
        finally:
            server.close()

    asyncio.run(main())


ANSWERS: list[Any] = [
    {},
    {"pid": "1"},
    {"pid": None, "started_ns": -1},
    {"pid": 1, "started_ns": "now", "containers": 3, "execs": {}},
    {"containers": [1, 2], "execs": [[]], "after_event": "x"},
    {"containers": [{}], "execs": [{}], "after_event": 1 << 70},
    {"containers": [{"id": 7, "status": "running"}], "execs": [{"exec_id": [], "pid": 1}]},
    {"boot_id": 5, "kernel": [], "figures": "many", "processes": {}, "titles": 1},
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_of_another_shape_are_errors_and_change_nothing(
    tmp_path: Path, answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wherry.engine.engine._EVENTS_PATIENCE", 0.05)

    async def scene(world: World) -> None:
        engine = world.engine
        running = await world.run("runs")
        created = await world.create("waits")
        execution = engine.execs.create(running.id, {"Cmd": ["true"]})
        link = world.machine.link
        assert link is not None
        genuine = link.call

        async def garbage(method: str, params: dict[str, Any], *, timeout: float = 30.0) -> Any:
            return answer

        link.call = garbage  # type: ignore[method-assign]  # this link's agent has gone mad
        for work in (
            engine.containers.start("waits"),
            engine.execs.start(execution.id, detach=True),
            engine.lives.top("runs", ""),
            engine.lives.with_fresh_health("runs"),
            engine.sampler.once(running),
            engine.guest_info(),
            engine._agree(link),
        ):
            with contextlib.suppress(WherryError):  # an error of ours is all that is asked
                await work
        link.call = genuine  # type: ignore[method-assign]  # it has recovered
        await engine._agree(link)
        assert engine.containers.get(running.id).status is Status.RUNNING
        assert engine.containers.get(created.id).started_ns is None

    play(tmp_path, scene)
