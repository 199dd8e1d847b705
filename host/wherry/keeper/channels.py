"""One connection of QEMU's, offered to one client after the other.

What QEMU says while there is no client is dropped, as QEMU itself does without one: neither may an
absent engine stop the guest, nor the guest fill our memory. The wire's handshake and QMP's queries
find out what was missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wherry.osutil.local import LocalServer, serve_local

CHUNK = 256 * 1024

LINE_LIMIT = 64 * 1024 * 1024
"""Bytes of one QMP message."""


class Channel:
    """A chardev that carries bytes.

    Args:
        reader, writer: the connection that QEMU made.
        path: where clients find it.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path
    ) -> None:
        self._qemu_reader = reader
        self._qemu_writer = writer
        self._path = path
        self._clients: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        self._clients = asyncio.Queue()
        self._client: asyncio.StreamWriter | None = None
        self._server: LocalServer | None = None

    async def serve(self) -> None:
        """Offer it. Clients beyond the first wait until their turn comes."""
        self._server = await serve_local(self._path, self._accept)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.put_nowait((reader, writer))

    async def run(self) -> None:
        """Carry bytes until QEMU closes the connection; then close everything."""
        serving = asyncio.create_task(self._serve_clients(), name=f"clients of {self._path}")
        try:
            while data := await self._next():
                await self._give(data)
        except ConnectionError:
            pass  # QEMU was killed: the end, like any other
        finally:
            if self._server is not None:
                self._server.close()
            serving.cancel()
            await asyncio.wait({serving})
            while not self._clients.empty():
                self._clients.get_nowait()[1].close()
            self._qemu_writer.close()

    async def _next(self) -> bytes:
        """What QEMU says next; b"" at the end."""
        return await self._qemu_reader.read(CHUNK)

    async def _prepare(self, client: asyncio.StreamWriter) -> None:
        """Before a client gets anything."""

    async def _give(self, data: bytes) -> None:
        client = self._client
        if client is not None:
            client.write(data)
            with contextlib.suppress(ConnectionError):  # it left: `_serve_clients` hears of it
                await client.drain()

    async def _serve_clients(self) -> None:
        while True:
            reader, client = await self._clients.get()
            # Without a buffer of ours, so that nothing that QEMU said is lost when we end.
            client.transport.set_write_buffer_limits(high=0)
            try:
                await self._prepare(client)
                self._client = client
                while data := await reader.read(CHUNK):
                    self._qemu_writer.write(data)
                    await self._qemu_writer.drain()
            except ConnectionError:
                pass  # it left
            finally:
                self._client = None
                client.close()


class Monitor(Channel):
    """A chardev that speaks QMP, whose greeting and negotiation happen once.

    Each client is greeted anew: what the one before had left half-said, or unanswered, is cleared
    away, and its negotiation, which QEMU refuses the second time, is answered here.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path
    ) -> None:
        super().__init__(reader, writer, path)
        self._greeting = b""
        self._answer: tuple[str, asyncio.Future[dict[str, Any]]] | None = None
        self._negotiated = False

    async def negotiate(self) -> None:
        """Take the greeting, once.

        Raises:
            ConnectionError, ValueError: whoever is there does not speak QMP.
        """
        self._greeting = await self._qemu_reader.readline()
        if "QMP" not in _parsed(self._greeting):
            raise ConnectionError("no greeting")
        await self.ask("qmp_capabilities")

    async def ask(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Execute a command, before `run`.

        Raises:
            ConnectionError, ValueError: it was not answered.
        """
        self._send(command, arguments, id="keeper")
        while line := await self._qemu_reader.readline():
            message = _parsed(line)
            if message.get("id") == "keeper":
                if "return" not in message:
                    raise ConnectionError(f"{command} was refused")
                return message["return"]
        raise ConnectionError("it closed the connection")

    def _send(self, command: str, arguments: Mapping[str, object] | None, *, id: str) -> None:
        message = {"execute": command, "arguments": arguments or {}, "id": id}
        self._qemu_writer.write(json.dumps(message).encode() + b"\n")

    async def _prepare(self, client: asyncio.StreamWriter) -> None:
        """QEMU executes in order: once it has answered ours, no older answer can come."""
        answer = asyncio.get_running_loop().create_future()
        self._answer = (secrets.token_hex(8), answer)
        # A byte that JSON cannot have ends what was begun (qobject/json-lexer.c).
        self._qemu_writer.write(b"\xff\n")
        self._send("query-status", None, id=self._answer[0])
        await answer
        self._negotiated = False
        client.write(self._greeting)
        await client.drain()

    async def _give(self, data: bytes) -> None:
        if self._answer is not None:
            id, answer = self._answer
            if _parsed(data).get("id") == id:
                self._answer = None
                answer.set_result({})
            return
        if self._client is not None and not self._negotiated:
            data = self._negotiation(data)
        await super()._give(data)

    async def _next(self) -> bytes:
        return await self._qemu_reader.readline()

    def _negotiation(self, line: bytes) -> bytes:
        """The refusal of a second `qmp_capabilities` made the answer that the client expects."""
        message = _parsed(line)
        if "event" in message:
            return line
        self._negotiated = True
        if "error" not in message:
            return line
        accepted = {"return": {}} | ({"id": message["id"]} if "id" in message else {})
        return json.dumps(accepted).encode() + b"\r\n"


def _parsed(line: bytes) -> dict[str, Any]:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("not a QMP message")
    return value
