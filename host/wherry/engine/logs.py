"""Reading a container's log: by time, by stream, its last lines, and on as it grows.

The log lives in the guest, so a machine that is off is started to read it. Its frames are what the
process wrote at a time, of any number of lines; only `tail` looks at lines.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import groupby

from wherry.engine.attach import FrameReader
from wherry.engine.guest import Guest, open_log
from wherry.engine.model import LogFrame
from wherry.engine.ports import StreamPort
from wherry.errors import AgentError

_STREAMS = 2


@dataclass(frozen=True, slots=True)
class LogQuery:
    """What a client wants of a log. `tail` None: all lines."""

    streams: frozenset[int]
    follow: bool = False
    since_ns: int | None = None
    until_ns: int | None = None
    tail: int | None = None

    def wants(self, frame: LogFrame) -> bool:
        return (
            frame.stream in self.streams
            and (self.since_ns is None or frame.time_ns >= self.since_ns)
            and (self.until_ns is None or frame.time_ns <= self.until_ns)
        )


async def read_log(guest: Guest, container_id: str, query: LogQuery) -> AsyncIterator[LogFrame]:
    """The frames that `query` wants, in the log's order."""
    place = _Place()
    if query.tail is not None:
        tail = Tail(query.tail)
        async for frame in _frames(guest, container_id, place, follow=False):
            if query.wants(frame):
                tail.feed(frame)
        for frame in tail.frames():
            yield frame
        if not query.follow:
            return
    async for frame in _until(_frames(guest, container_id, place, query.follow), query):
        if query.wants(frame):
            yield frame


async def _until(frames: AsyncIterator[LogFrame], query: LogQuery) -> AsyncIterator[LogFrame]:
    """`frames`, ended when `until` has come and nothing older can follow."""
    if query.until_ns is None or not query.follow:
        async for frame in frames:
            yield frame
        return
    while True:
        try:
            async with asyncio.timeout(max(0.0, (query.until_ns - time.time_ns()) / 1e9)):
                frame = await anext(frames)
        except (TimeoutError, StopAsyncIteration):
            return
        if frame.time_ns > query.until_ns:
            return
        yield frame


@dataclass(slots=True)
class _Place:
    """Where in the log reading has come to; what has been rotated away is passed over."""

    position: int = 0


async def _frames(
    guest: Guest, container_id: str, place: _Place, follow: bool
) -> AsyncIterator[LogFrame]:
    """The frames from `place` on, which moves along."""
    link = await guest.running_link()
    try:
        stream, offset = await open_log(link, container_id, place.position, follow=follow)
    except AgentError as error:
        if error.code == "not_found":  # it never wrote a log
            return
        raise

    async def reopen(at: int) -> StreamPort:
        nonlocal stream
        stream, _ = await open_log(guest.need_link(), container_id, at, follow=follow)
        return stream

    reader = FrameReader(stream, offset, reopen)
    try:
        async for frame in reader.frames():
            yield frame
        place.position = reader.position
    finally:
        stream.reset("the reader has enough")


class Tail:
    """The last `count` lines of a sequence of frames. Feed it all of them; it keeps few.

    A line belongs to the stream that it was written to and counts where it begins; the last one
    need not end with a newline.
    """

    def __init__(self, count: int) -> None:
        self._count = max(0, count)
        self._kept: deque[tuple[LogFrame, int]] = deque()
        self._newlines = 0
        self._open: set[int] = set()
        """Streams in the middle of a line where what is kept begins."""

    def feed(self, frame: LogFrame) -> None:
        if not self._count or not frame.payload:
            return
        newlines = frame.payload.count(b"\n")
        self._kept.append((frame, newlines))
        self._newlines += newlines
        # What is dropped may leave an unfinished line per stream, whose newline does not count.
        while self._newlines - self._kept[0][1] > self._count + _STREAMS:
            dropped, fewer = self._kept.popleft()
            self._newlines -= fewer
            if dropped.payload.endswith(b"\n"):
                self._open.discard(dropped.stream)
            else:
                self._open.add(dropped.stream)

    def frames(self) -> list[LogFrame]:
        """Frames that hold the last lines and nothing else."""
        pieces = [piece for frame, _ in self._kept for piece in _lines(frame)]
        numbers = _line_numbers(pieces, self._open)
        first = max(numbers, default=0) - self._count
        chosen = [
            piece for piece, number in zip(pieces, numbers, strict=True) if number > max(first, 0)
        ]
        return _joined(chosen)


def _lines(frame: LogFrame) -> list[LogFrame]:
    parts = frame.payload.split(b"\n")
    lines = [part + b"\n" for part in parts[:-1]]
    if parts[-1]:
        lines.append(parts[-1])
    return [LogFrame(frame.stream, frame.time_ns, line) for line in lines]


def _line_numbers(pieces: list[LogFrame], open_streams: set[int]) -> list[int]:
    """For each piece the number of its line, from 1; 0 for lines that began before the pieces."""
    current = dict.fromkeys(open_streams, 0)
    count = 0
    numbers = []
    for piece in pieces:
        if piece.stream not in current:
            count += 1
            current[piece.stream] = count
        numbers.append(current[piece.stream])
        if piece.payload.endswith(b"\n"):
            del current[piece.stream]
    return numbers


def _joined(pieces: list[LogFrame]) -> list[LogFrame]:
    """Neighbouring pieces of one frame in one piece again."""
    return [
        LogFrame(stream, time_ns, b"".join(piece.payload for piece in group))
        for (stream, time_ns), group in groupby(pieces, key=lambda p: (p.stream, p.time_ns))
    ]
