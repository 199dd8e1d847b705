"""What carries the wire's bytes: the seam below the link, and the transport over an asyncio socket.

The rule: a transport knows nothing of frames. It may lose data when it is cut, never reorder it. A
new kind (vsock, a channel through SSH) is a `connect` function that returns a `Transport`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from wherry_guest.wire import Buffer

WRITE_BUFFER = 256 * 1024
"""Bytes that may wait in this process for a slow far end; what waits cannot be overtaken."""


class Receiver(Protocol):
    """What a transport tells its owner, from the event loop's thread, never from within `write`."""

    def data_received(self, data: bytes) -> None: ...

    def writable(self) -> None:
        """After a `write` that returned False: there is room again."""

    def connection_lost(self, error: Exception | None) -> None:
        """The end, told once, also after `close`."""


class Transport(Protocol):
    """An open connection to the guest."""

    def start(self, receiver: Receiver) -> None:
        """Begin to tell `receiver` what comes; called once."""

    def write(self, pieces: Iterable[Buffer]) -> bool:
        """Take all of `pieces`, never block; False: no more until `writable`."""

    def close(self) -> None:
        """Let go at once; what was not written yet is dropped."""


Connect = Callable[[], Awaitable[Transport]]
"""Opens a transport. An OSError or LinkError means: not now, it is tried again."""


class SocketTransport(asyncio.Protocol):
    """A `Transport` over any stream that asyncio can open."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._receiver: Receiver | None = None
        self._congested = False
        self._lost: tuple[Exception | None] | None = None

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        if self._lost is not None:
            asyncio.get_running_loop().call_soon(receiver.connection_lost, self._lost[0])
        elif self._transport is not None:
            self._transport.resume_reading()

    def write(self, pieces: Iterable[Buffer]) -> bool:
        if self._transport is None or self._transport.is_closing():
            return True  # connection_lost is on its way; the link sends it all again
        self._transport.writelines(pieces)
        return not self._congested

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        transport.pause_reading()  # until somebody listens

    def data_received(self, data: bytes) -> None:
        assert self._receiver is not None
        self._receiver.data_received(data)

    def pause_writing(self) -> None:
        self._congested = True

    def resume_writing(self) -> None:
        self._congested = False
        if self._receiver is not None:
            self._receiver.writable()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = (error,)
        if self._receiver is not None:
            self._receiver.connection_lost(error)


async def over_socket(connected: socket.socket) -> Transport:
    """A transport over a connected stream socket of any family; it owns the socket from here on.

    For what asyncio has no opener for: a vsock, or a connection that QEMU made to our listener.
    """
    connected.setblocking(False)
    loop = asyncio.get_running_loop()
    _, transport = await loop.create_connection(SocketTransport, sock=connected)
    return transport
