"""Whose a connection is when the kernel names no owner: the secret and the ports decide."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from wherry.keeper import keeper
from wherry.keeper.plan import HOST, Plan

PLAN = Plan([], None, {"qmp": "q", "rescue": "r"}, {"agent": "a"})
SECRET = "5" * 32


class Caller:
    """Someone who dials: QEMU, or one who plays QEMU without knowing its secret."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self.ports: dict[str, int] = {}
        self.writers: list[asyncio.StreamWriter] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.dropped: set[str] = set()

    async def dial(self, listening: Mapping[str, int]) -> None:
        for name, port in listening.items():
            reader, writer = await asyncio.open_connection(HOST, port)
            self.ports[name] = writer.get_extra_info("sockname")[1]
            self.writers.append(writer)
            self.tasks.append(asyncio.create_task(self._speak(name, reader, writer)))

    async def aclose(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for writer in self.writers:
            writer.close()
        await asyncio.gather(
            *(writer.wait_closed() for writer in self.writers), return_exceptions=True
        )

    async def _speak(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if name in PLAN.monitors:
            writer.write(b'{"QMP": {}}\r\n')
        try:
            while line := await reader.readline():
                command = json.loads(line)
                answer = {"return": self._answer(command["execute"]), "id": command["id"]}
                writer.write(json.dumps(answer).encode() + b"\r\n")
        except ConnectionError:
            pass  # dropped, unheard
        self.dropped.add(name)

    def _answer(self, command: str) -> object:
        if command == "qom-get":
            return self._secret
        if command == "query-chardev":
            return [
                {"label": name, "filename": f"tcp:{HOST}:{port} <-> {HOST}:1"}
                for name, port in self.ports.items()
            ]
        return {}


def test_strangers_that_play_qemu_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "owned_by", lambda _pid, **_ports: None)

    async def scenario() -> None:
        listeners = {name: keeper._listen() for name in (*PLAN.monitors, *PLAN.streams)}
        listening = {name: it.getsockname()[1] for name, it in listeners.items()}
        stranger, qemu = Caller("6" * 32), Caller(SECRET)
        taking = asyncio.create_task(keeper._take_all(PLAN, listeners, 1, SECRET))
        await stranger.dial(listening)
        await qemu.dial(listening)
        channels = await taking
        assert [channel._path for channel in channels] == [Path("q"), Path("r"), Path("a")]
        for channel in channels:
            channel._qemu_writer.write(b'{"execute": "x", "id": 1}\n')
        async with asyncio.timeout(10):
            await asyncio.gather(*stranger.tasks)
        assert stranger.dropped == set(listening)
        assert not qemu.dropped
        for channel in channels:
            channel._qemu_writer.close()
        await asyncio.gather(*qemu.tasks)
        await stranger.aclose()
        await qemu.aclose()
        for listener in listeners.values():
            listener.close()

    asyncio.run(scenario())


def test_a_connection_of_another_process_is_not_even_spoken_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeper, "owned_by", lambda _pid, **_ports: False)

    async def scenario() -> None:
        listeners = {name: keeper._listen() for name in PLAN.monitors}
        taking = asyncio.create_task(keeper._take_all(PLAN, listeners, 1, SECRET))
        caller = Caller(SECRET)
        await caller.dial({name: it.getsockname()[1] for name, it in listeners.items()})
        async with asyncio.timeout(10):
            await asyncio.gather(*caller.tasks)
        assert not taking.done()
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        await caller.aclose()
        for listener in listeners.values():
            listener.close()

    asyncio.run(scenario())
