"""Attachments: a client's hold on a process's input and output, from before its start to its end.

The log is the truth: a container's attachment that was cut off goes on from its offset in the log
on a new stream. Input cannot be repeated, so an attachment with open input ends with StreamReset
instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from wherry.engine.frames import FrameParser
from wherry.engine.model import STDERR, STDOUT, LogFrame
from wherry.engine.ports import StreamPort
from wherry.errors import LinkClosed
from wherry.link import StreamReset

READ_SIZE = 256 * 1024
_RESUMES = 5
"""Streams in a row that may be cut before a single frame came."""

Reopen = Callable[[int], Awaitable[StreamPort]]
"""Open a stream of the same log at an offset."""


class FrameReader:
    """The frames of an attach stream that began at `position`; resumed with `reopen` when it is
    cut.

    `position` is the offset in the log behind the last frame that was read.
    """

    def __init__(self, stream: StreamPort, position: int, reopen: Reopen | None) -> None:
        self._stream = stream
        self._start = position
        self._reopen = reopen
        self._parser = FrameParser()

    @property
    def position(self) -> int:
        return self._start + self._parser.consumed

    async def frames(self) -> AsyncIterator[LogFrame]:
        """To the stream's end.

        Raises:
            StreamReset: it was cut and there is no `reopen`, or it is of no use.
            LinkError: the bytes are not frames.
        """
        cuts = 0
        while True:
            try:
                data = await self._stream.read(READ_SIZE)
            except StreamReset:
                cuts = 0 if self._parser.consumed else cuts + 1
                if self._reopen is None or cuts > _RESUMES:
                    raise
                self._start = self.position
                self._parser = FrameParser()
                self._stream = await self._reopen(self._start)
                continue
            if not data:
                self._parser.finish()
                return
            for frame in self._parser.feed(data):
                yield frame


class StreamAttachment:
    """An `Attachment` over a stream of the link; it waits until `bind` gives it one.

    Args:
        streams: which of STDOUT and STDERR the client wants.
        stdin: whether the client may write.
        replay: whether output from before the attachment is wanted too.
        released: called once, when the output has ended or the client has let go.
    """

    def __init__(
        self,
        *,
        tty: bool,
        streams: frozenset[int],
        stdin: bool,
        replay: bool = False,
        released: Callable[[StreamAttachment], None] = lambda _attachment: None,
    ) -> None:
        self.tty = tty
        self.stdin = stdin
        self.replay = replay
        self.binding = False
        """Set while somebody is about to `bind` or `abandon` it."""
        self._streams = streams
        self._released: Callable[[StreamAttachment], None] | None = released
        self._decided = asyncio.Event()
        self._stream: StreamPort | None = None
        self._offset = 0
        self._reopen: Reopen | None = None
        self._last: asyncio.Future[Any] | None = None
        self._input_open = stdin
        self._over = False

    @property
    def waiting(self) -> bool:
        """True until `bind` or `abandon`."""
        return not self._decided.is_set()

    def bind(
        self,
        stream: StreamPort,
        *,
        offset: int = 0,
        reopen: Reopen | None = None,
        last: asyncio.Future[Any] | None = None,
    ) -> None:
        """Give it its stream. `last` is awaited before the frames end (an exec's exit code)."""
        if self._over:
            stream.reset("the client is gone")
            return
        self._stream, self._offset, self._reopen, self._last = stream, offset, reopen, last
        self._decided.set()

    def abandon(self) -> None:
        """There will be no output: the process does not start."""
        self._decided.set()

    async def frames(self) -> AsyncIterator[tuple[int, bytes]]:
        """See `Attachment.frames`."""
        await self._decided.wait()
        try:
            if self._stream is not None:
                reopen = self._resume if self._reopen is not None else None
                reader = FrameReader(self._stream, self._offset, reopen)
                async for frame in reader.frames():
                    if frame.stream in self._streams:
                        yield frame.stream, frame.payload
                if self._last is not None:
                    await asyncio.shield(self._last)
        finally:
            self._finish("the output has ended")

    async def write(self, data: bytes) -> None:
        """See `Attachment.write`."""
        await self._decided.wait()
        if self._stream is None or self._over or not self._input_open:
            return
        try:
            await self._stream.write(data)
        except (StreamReset, LinkClosed):
            if not self._over:
                raise

    async def end_input(self) -> None:
        """See `Attachment.end_input`."""
        await self._decided.wait()
        if self._stream is None or self._over or not self._input_open:
            return
        self._input_open = False
        try:
            await self._stream.end()
        except (StreamReset, LinkClosed):
            if not self._over:
                raise

    async def aclose(self) -> None:
        """See `Attachment.aclose`."""
        self._finish("the client has detached")

    async def _resume(self, offset: int) -> StreamPort:
        if self._input_open:
            raise StreamReset("the connection to the machine was lost with input under way")
        assert self._reopen is not None
        self._stream = await self._reopen(offset)
        return self._stream

    def _finish(self, reason: str) -> None:
        if self._over:
            return
        self._over = True
        self._decided.set()
        if self._stream is not None:
            self._stream.reset(reason)  # also releases a writer that waits for credit
        if self._released is not None:
            released, self._released = self._released, None
            released(self)


def wanted_streams(stdout: bool, stderr: bool) -> frozenset[int]:
    return frozenset(number for number, wanted in ((STDOUT, stdout), (STDERR, stderr)) if wanted)
