"""Connections within this host, for asyncio: a Unix socket, or on Windows a named pipe, by a path.

Only this user can connect to what is served here. Unlike the rest of this package not blocking.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from wherry.osutil.pipes import create_instance, open_pipe
from wherry.osutil.sockets import listen_unix

LIMIT = 256 * 1024
"""Bytes that a stream reader keeps."""

_INSTANCES = 4
"""Of a pipe that wait for a client at any time: one that finds none has to ask again."""

P = TypeVar("P", bound=asyncio.Protocol)

Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]
"""Called with each new connection; must not block."""


class LocalServer(Protocol):
    def close(self) -> None:
        """Accept no more. What was accepted goes on."""


async def connect_local(factory: Callable[[], P], path: Path) -> tuple[asyncio.Transport, P]:
    """Connect a protocol.

    Raises:
        OSError: nobody serves the path, or (Windows) another user does.
    """
    loop = asyncio.get_running_loop()
    if sys.platform == "win32":
        protocol = factory()
        handle = await asyncio.to_thread(open_pipe, path)
        connected = loop.create_future()  # done when the protocol has its transport
        transport = _pipe_transport(_pipe_handle(handle), protocol, connected)
        await connected
        return transport, protocol
    return await loop.create_unix_connection(factory, os.fspath(path))


async def open_local(
    path: Path, *, limit: int = LIMIT
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect, with streams. Raises as `connect_local`."""
    reader = asyncio.StreamReader(limit=limit)
    transport, protocol = await connect_local(lambda: asyncio.StreamReaderProtocol(reader), path)
    return reader, asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())


async def serve_local(path: Path, accept: Accept, *, limit: int = LIMIT) -> LocalServer:
    """Serve `path`.

    Raises:
        StorageError: a socket cannot be bound there.
        Conflict: a pipe of that name exists.
    """
    if sys.platform == "win32":
        return _PipeServer(path, accept, limit)
    return await asyncio.start_unix_server(accept, sock=listen_unix(path), limit=limit)


class _PipeServer:
    """Each instance of a pipe serves one client, so new ones are always waiting."""

    def __init__(self, path: Path, accept: Accept, limit: int) -> None:
        self._path = path
        self._accept = accept
        self._limit = limit
        first = create_instance(path, first=True)
        handles = [first, *(create_instance(path, first=False) for _ in range(_INSTANCES - 1))]
        self._waiting: set[asyncio.Task[None]] = set()
        for handle in handles:
            self._wait(handle)

    def close(self) -> None:
        for task in tuple(self._waiting):
            task.cancel()

    def _wait(self, handle: int) -> None:
        task = asyncio.create_task(self._serve(handle), name=f"pipe {self._path}")
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _serve(self, handle: int) -> None:
        """Wait for a client on this instance, put another in its place, hand it over."""
        pipe = _pipe_handle(handle)
        try:
            await _proactor_loop()._proactor.accept_pipe(pipe)
        except OSError:  # that client left before it was served
            pipe.close()
            self._wait(create_instance(self._path, first=False))
            return
        except BaseException:
            pipe.close()
            raise
        self._wait(create_instance(self._path, first=False))
        reader = asyncio.StreamReader(limit=self._limit)
        _pipe_transport(pipe, asyncio.StreamReaderProtocol(reader, self._accept))


def _pipe_handle(handle: int) -> Any:
    """asyncio's owner of a handle."""
    if sys.platform != "win32":
        raise OSError("only on Windows")
    return asyncio.windows_utils.PipeHandle(handle)


def _pipe_transport(
    pipe: Any, protocol: asyncio.BaseProtocol, connected: asyncio.Future[None] | None = None
) -> asyncio.Transport:
    """As `create_pipe_connection` makes it (CPython, asyncio/windows_events.py), which would open
    the pipe itself, whoever's it is."""
    loop = _proactor_loop()
    transport: asyncio.Transport = loop._make_duplex_pipe_transport(pipe, protocol, connected)
    return transport


def _proactor_loop() -> Any:
    return asyncio.get_running_loop()
