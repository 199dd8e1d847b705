"""The HTTP server: one task per connection, h11 for the protocol, hijack for byte streams.

A request's handler is cancelled when its client goes away. Nothing is pipelined: the bytes that
arrive while a handler runs are kept for the next request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import h11

from wherry import __version__
from wherry.api.http import (
    Hijack,
    Request,
    Response,
    Streamed,
    error_response,
    split_path,
    split_target,
)
from wherry.api.routes import ROUTES
from wherry.errors import InvalidInput, WherryError
from wherry.osutil import disk_error, disk_hint
from wherry.osutil.local import LocalServer, serve_local

if TYPE_CHECKING:
    from wherry.engine.engine import Engine

READ_SIZE = 256 * 1024
BODY_LIMIT = 8 * 1024 * 1024
"""Bytes of a body that is read in whole; Docker's own clients send a few KiB of JSON."""

_LINGER_SECONDS = 2.0
_ACCEPT_TURNS = 4
"""Turns of the loop from accept(2) to our callback (CPython, asyncio/selector_events.py)."""

_COMMON_HEADERS = (
    ("Api-Version", "1.50"),
    ("Docker-Experimental", "false"),
    ("Ostype", "linux"),
    ("Server", f"Wherry/{__version__}"),
)
_CLIENT_GONE = (ConnectionError, BrokenPipeError, h11.RemoteProtocolError)

_T = TypeVar("_T")
log = logging.getLogger(__name__)


async def serve(engine: Engine, listener: socket.socket | Path, stop: asyncio.Event) -> None:
    """Serve the API until `stop` is set; open connections are then cut.

    Args:
        listener: a listening socket, or the path of a pipe.
    """
    connections: set[asyncio.Task[None]] = set()

    # A plain function, so that a connection is known from the moment that it is made: a task that
    # is cancelled before its first step could not close it.
    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(_Connection(engine, reader, writer).run())
        connections.add(task)

        def ended(_: object) -> None:
            connections.discard(task)
            writer.transport.abort()  # closed already, unless the server is ending
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("a connection failed", exc_info=error)

        task.add_done_callback(ended)

    server: LocalServer
    if isinstance(listener, Path):
        server = await serve_local(listener, accept, limit=READ_SIZE)
    else:
        server = await asyncio.start_server(accept, sock=listener, limit=READ_SIZE)
    try:
        await stop.wait()
    finally:
        if not isinstance(listener, Path):
            await _stop_accepting(listener)
        server.close()
        for task in tuple(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _stop_accepting(listener: socket.socket) -> None:
    """Accept no more, and let what was accepted become a connection.

    CPython up to 3.11 drops a connection, unclosed, whose server is closed between the two.
    """
    with contextlib.suppress(NotImplementedError):  # Windows' loop has no readers
        asyncio.get_running_loop().remove_reader(listener.fileno())
    for _ in range(_ACCEPT_TURNS):
        await asyncio.sleep(0)


class _Connection:
    """One client, from accept to close."""

    def __init__(
        self, engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=64 * 1024)
        self._incoming: _Incoming | None = None

    async def run(self) -> None:
        try:
            while await self._one_request():
                self._http.start_next_cycle()
        except _CLIENT_GONE as error:
            log.debug("client gone: %s", error)
        finally:
            self._writer.close()
            with contextlib.suppress(*_CLIENT_GONE):
                await self._writer.wait_closed()

    async def _one_request(self) -> bool:
        """Serve one request; True when the connection can carry another."""
        event = await self._next_event()
        if not isinstance(event, h11.Request):
            return False
        head = event
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in head.headers
        }
        ours = headers.get("user-agent", "").startswith("wherry/")
        what = f"{head.method.decode('ascii')} {split_path(head.target.decode('latin-1'))}"
        with self._engine.presence.working(what):
            answer = await self._answer(head, headers, separate_hint=ours)
            if answer is None:
                return False
            if isinstance(answer, Hijack):
                await self._hijack(answer, upgrade="upgrade" in headers)
                return False
            await self._send(answer, head_only=head.method == b"HEAD")
        if answer.then is not None:
            answer.then()
        if self._http.their_state is h11.SEND_BODY:
            await self._linger()
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _answer(
        self, head: h11.Request, headers: dict[str, str], *, separate_hint: bool
    ) -> Response | Hijack | None:
        """The handler's answer, any error as a response; None when the client left meanwhile."""
        try:
            path, version, query = split_target(head.target.decode("latin-1"))
            handler, args = ROUTES.find(head.method.decode("ascii"), path)
            await self._engine.idle.wake_for(f"{head.method.decode('ascii')} {path}")
            streamed = isinstance(handler, Streamed)
            self._incoming = _Incoming(self._next_event) if streamed else None
            body = b"" if streamed else await self._body()
            method = head.method.decode("ascii")
            chunks = self._incoming
            request = Request(method, path, query, headers, body, version, args, chunks)
            return await self._unless_gone(handler(self._engine, request))
        except WherryError as error:
            return error_response(error, separate_hint=separate_hint)
        except (asyncio.CancelledError, *_CLIENT_GONE):
            raise
        except Exception as error:  # the edge: a bug is an answer and a traceback
            if isinstance(error, OSError) and disk_hint(error) is not None:
                return error_response(disk_error(error), separate_hint=separate_hint)
            log.exception("bug while serving %s", head.target)
            return error_response(
                WherryError(f"internal error: {type(error).__name__}: {error}"),
                separate_hint=separate_hint,
            )

    async def _unless_gone(self, handling: Coroutine[Any, Any, _T]) -> _T | None:
        """Await the handler; cancel it and return None when the client closes the connection."""
        work = asyncio.ensure_future(handling)
        gone = asyncio.ensure_future(self._client_left())
        try:
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
            return await work if work.done() else None
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _client_left(self) -> None:
        """Return when the client has closed; early bytes are kept for h11."""
        if self._incoming is not None:  # whoever reads the body hears of it first
            await self._incoming.ended.wait()
        while data := await self._reader.read(READ_SIZE):
            self._http.receive_data(data)

    async def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self._http.they_are_waiting_for_100_continue:
                await self._write_event(
                    h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
                )
            self._http.receive_data(await self._reader.read(READ_SIZE))

    async def _body(self) -> bytes:
        """The request's body. Raises InvalidInput when it is too large."""
        body = bytearray()
        async for piece in _Incoming(self._next_event):
            body += piece
            if len(body) > BODY_LIMIT:
                raise InvalidInput(f"the request body is larger than {BODY_LIMIT} bytes")
        return bytes(body)

    async def _send(self, response: Response, *, head_only: bool) -> None:
        headers = [*_COMMON_HEADERS, *response.headers.items()]
        if response.content_type:
            headers.append(("Content-Type", response.content_type))
        body = response.body
        if isinstance(body, bytes):
            headers.append(("Content-Length", str(len(body))))
            await self._write_event(h11.Response(status_code=response.status, headers=headers))
            if body and not head_only:
                await self._write_event(h11.Data(data=body))
        else:
            if response.length is not None:
                headers.append(("Content-Length", str(response.length)))
            await self._write_event(h11.Response(status_code=response.status, headers=headers))
            if not head_only:
                await self._send_stream(body)
        if self._http.our_state is not h11.MUST_CLOSE:
            await self._write_event(h11.EndOfMessage())

    async def _send_stream(self, body: AsyncIterator[bytes]) -> None:
        async def copy() -> bool:
            async for part in body:
                await self._write_event(h11.Data(data=part))
            return True

        if await self._unless_gone(copy()) is None:
            raise ConnectionResetError("the client left in the middle of an answer")

    async def _linger(self) -> None:
        """The body was refused unread: closing now could cost the client our answer."""
        if self._writer.can_write_eof():  # a pipe cannot
            self._writer.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while await self._reader.read(READ_SIZE):
                    pass

    async def _write_event(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)
            await self._writer.drain()

    async def _hijack(self, hijack: Hijack, *, upgrade: bool) -> None:
        """Answer as Docker does (raw, outside h11) and hand over the connection."""
        if upgrade:
            status = "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        else:
            status = "HTTP/1.1 200 OK\r\n"
        common = "".join(f"{name}: {value}\r\n" for name, value in _COMMON_HEADERS)
        head = f"{status}{common}Content-Type: {hijack.content_type}\r\n\r\n"
        self._writer.write(head.encode("ascii"))
        await self._writer.drain()
        early, _ = self._http.trailing_data
        try:
            await hijack.run(_Raw(bytes(early), self._reader, self._writer))
        except WherryError as error:
            log.warning("a stream ended early: %s", error)  # a byte stream has no place to say it


class _Incoming:
    """A request's body, piece by piece."""

    def __init__(
        self,
        next_event: Callable[[], Awaitable[h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]]],
    ) -> None:
        self._next_event = next_event
        self.ended = asyncio.Event()

    def __aiter__(self) -> _Incoming:
        return self

    async def __anext__(self) -> bytes:
        if self.ended.is_set():
            raise StopAsyncIteration
        try:
            event = await self._next_event()
        except h11.RemoteProtocolError as error:
            self.ended.set()
            raise ConnectionResetError("the client closed in the middle of a request") from error
        if isinstance(event, h11.Data):
            return bytes(event.data)
        self.ended.set()
        if not isinstance(event, h11.EndOfMessage):
            raise ConnectionResetError("the client closed in the middle of a request")
        raise StopAsyncIteration


class _Raw:
    """A hijacked connection."""

    def __init__(
        self, early: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._early = early
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        """The next bytes from the client; b"" when it closed (or half-closed)."""
        if self._early:
            data, self._early = self._early, b""
            return data
        return await self._reader.read(READ_SIZE)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()
