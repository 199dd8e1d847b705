"""Stand-ins for the machine's neighbours: a link, and a QEMU (`machine_fake_qemu.py`)."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wherry.errors import LinkClosed, LinkError
from wherry.machine.find import Qemu


def fake_qemu(directory: Path) -> Qemu:
    """A `Qemu` whose binary is the script."""
    binary = directory / "qemu-system-x86_64"
    script = Path(__file__).with_name("machine_fake_qemu.py")
    binary.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{script}" "$@"\n')
    binary.chmod(0o755)
    return Qemu(binary=binary, version=(8, 0, 0), arch="amd64")


class FakeStream:
    def __init__(self, content: bytes) -> None:
        self.id = 7
        self.content = content
        self.written = b""

    async def read(self, limit: int, /) -> bytes:
        part, self.content = self.content[:limit], self.content[limit:]
        return part

    async def write(self, data: bytes, /) -> None:
        self.written += data

    async def end(self) -> None:
        pass

    def reset(self, reason: str, /) -> None:
        pass


class FakeLink:
    """Answers calls from `answers`: a value, an exception, or a function of the params."""

    def __init__(self, connection: asyncio.StreamWriter | socket.socket | None = None) -> None:
        self.peer: dict[str, Any] = {"agent": {"digest": "d1"}}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Any] = {
            "system.setup": {"disk": "created"},
            "layers.list": {"layers": [], "highest_lun": -1},
        }
        self.closed = False
        self.silence = 0.0
        self.refusal: LinkError | None = None
        self.streams: list[FakeStream] = []
        self._connection = connection
        self._connect_callbacks: list[Callable[[dict[str, Any]], None]] = []

    async def call(
        self, method: str, params: dict[str, Any] | None = None, /, *, timeout: float | None = 30.0
    ) -> dict[str, Any]:
        if self.closed:
            raise LinkClosed("closed")
        self.calls.append((method, params or {}))
        await asyncio.sleep(0)
        answer = self.answers.get(method, {})
        if callable(answer):
            answer = answer(params)
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, dict)
        return answer

    def reconnected(self, peer: dict[str, Any]) -> None:
        self.peer = peer
        for callback in self._connect_callbacks:
            callback(peer)

    def on_connect(self, callback: Callable[[dict[str, Any]], None], /) -> None:
        self._connect_callbacks.append(callback)

    def refuse(self, error: LinkError | None) -> None:
        self.refusal = error

    def open_stream(self) -> FakeStream:
        stream = FakeStream(b"070701" + b"\0" * 506)
        self.streams.append(stream)
        return stream

    async def aclose(self) -> None:
        self.closed = True
        if self._connection is not None:
            self._connection.close()

    @property
    def methods(self) -> list[str]:
        return [method for method, _ in self.calls]
