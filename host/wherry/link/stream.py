"""The host's end of one byte stream.

The rule: a stream is complete or it says so. `read` gives b"" only when the guest ended its half
and everything before that was read; whatever else ends a stream is a StreamReset.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from wherry.errors import LinkError
from wherry_guest.wire import StreamState

WRITE_PIECE = 256 * 1024
"""Bytes given to the wire at a time: what a cancelled `write` may still send."""


class StreamReset(LinkError):
    """The stream was cut before its end: by the guest, by us, or with its session."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Owner(Protocol):
    def stream_send(self, state: StreamState, data: bytes) -> bool: ...
    def stream_end(self, state: StreamState) -> None: ...
    def stream_reset(self, state: StreamState, reason: str) -> None: ...
    def stream_consumed(self, state: StreamState, count: int) -> None: ...


class Stream:
    """A byte stream to and from the guest; `link.open_stream()` makes it.

    One task may read while another writes. Read it to its end or `reset` it: until then the guest's
    side waits.
    """

    def __init__(self, owner: _Owner, state: StreamState) -> None:
        self.id = state.id
        """The number to put into a call's parameters."""
        self._owner = owner
        self._state = state
        self._chunks: deque[bytes] = deque()
        self._ended = False
        self._reset: str | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writers: deque[asyncio.Future[None]] = deque()

    async def read(self, limit: int = 65536) -> bytes:
        """Up to `limit` bytes as soon as there are some; b"" at the end.

        Raises:
            StreamReset: the stream was cut; what was not read yet is gone.
        """
        if limit <= 0:
            raise ValueError("limit must be positive")
        while not self._chunks:
            if self._reset is not None:
                raise StreamReset(self._reset)
            if self._ended:
                return b""
            await self._wait_for_data()
        data = self._take(limit)
        self._owner.stream_consumed(self._state, len(data))
        return data

    async def write(self, data: bytes) -> None:
        """Send all of `data`; returns once the guest has credit left for more.

        Raises:
            StreamReset: the stream was cut; part of `data` may have arrived.
            ValueError: after `end`.
        """
        view = memoryview(data)
        for at in range(0, len(view), WRITE_PIECE):
            if self._reset is not None:
                raise StreamReset(self._reset)
            if not self._owner.stream_send(self._state, bytes(view[at : at + WRITE_PIECE])):
                await self._wait_for_credit()

    async def end(self) -> None:
        """Half-close, after all that was written; reading goes on.

        Raises:
            StreamReset: the stream was cut.
        """
        if self._reset is not None:
            raise StreamReset(self._reset)
        self._owner.stream_end(self._state)

    def reset(self, reason: str) -> None:
        """Cut both directions; the guest gets the reason. Nothing when the stream is over."""
        if self._reset is None:
            self._owner.stream_reset(self._state, reason)
            self.was_reset(reason)

    # What the link says.

    def received(self, data: bytes) -> None:
        self._chunks.append(data)
        _wake(self._reader)

    def peer_ended(self) -> None:
        self._ended = True
        _wake(self._reader)

    def writable(self) -> None:
        for writer in self._writers:
            _wake(writer)

    def was_reset(self, reason: str) -> None:
        self._reset = reason
        self._chunks.clear()
        _wake(self._reader)
        self.writable()

    def _take(self, limit: int) -> bytes:
        head = self._chunks[0]
        if len(head) > limit:
            self._chunks[0] = head[limit:]
            return head[:limit]
        self._chunks.popleft()
        if not self._chunks or len(head) + len(self._chunks[0]) > limit:
            return head
        parts, size = [head], len(head)
        while self._chunks and size + len(self._chunks[0]) <= limit:
            parts.append(self._chunks.popleft())
            size += len(parts[-1])
        return b"".join(parts)

    async def _wait_for_data(self) -> None:
        if self._reader is not None:
            raise RuntimeError(f"stream {self.id} is being read by somebody else")
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    async def _wait_for_credit(self) -> None:
        writer = asyncio.get_running_loop().create_future()
        self._writers.append(writer)
        try:
            await writer
        finally:
            self._writers.remove(writer)
        if self._reset is not None:
            raise StreamReset(self._reset)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
