"""A container's log and the readers that follow it; or, with driver `none`, the readers alone.

Rules:

- *The log is the truth.* A frame is in the file before anybody is sent it.
- *A slow reader of a log costs nothing.* Who is caught up gets a frame as it is written; who is not
  is served from the file when his stream has credit again.
- *Without a log the slowest reader sets the pace*, and where there is none output is thrown away.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from wherry_guest.agent.logfile import (
    SERVE_BYTES,
    UNLIMITED,
    Cursor,
    Limits,
    LogFile,
    available,
    log_end,
)
from wherry_guest.agent.logframes import HEADER, PASSING_PAYLOAD, frame_header
from wherry_guest.loop import Loop, Timer
from wherry_guest.outbox import Buffer

FIRST_READER: Final = 5.0
"""Seconds that a container without a log waits for the reader who is on his way."""


class Sink(Protocol):
    """Where a follower's bytes go: the guest's end of a stream."""

    def write(self, *pieces: Buffer) -> bool:
        """Take all of it; False: no more, please, until the stream is writable again."""

    def end(self) -> None:
        """Half-close."""


class Follower:
    """One reader. `cursor` is his place in a log, None where there is no log."""

    __slots__ = ("blocked", "cursor", "follow", "sink", "stop_at")

    def __init__(self, sink: Sink, cursor: Cursor | None, follow: bool, stop_at: int) -> None:
        self.sink = sink
        self.cursor = cursor
        self.follow = follow
        self.stop_at = stop_at
        """Without `follow`: the log's end when he came."""
        self.blocked = False


class Output(Protocol):
    """What a container's output goes into: a `Log`, or an `Unlogged`."""

    @property
    def size(self) -> int: ...
    @property
    def first(self) -> int: ...
    @property
    def ready(self) -> bool: ...
    @property
    def lost(self) -> int: ...
    def when_ready(self, callback: Callable[[], None]) -> None: ...
    def take(self, pipe: int, stream: int) -> int | None: ...
    def follow(self, sink: Sink, offset: int, follow: bool) -> Follower: ...
    def unfollow(self, follower: Follower) -> None: ...
    def writable(self, follower: Follower) -> None: ...
    def start(self) -> None: ...
    def finish(self) -> None: ...
    def abandon(self) -> None: ...
    def end_offset(self) -> int: ...


class Log:
    """A container's log with its followers; opened when it is needed.

    Args:
        directory: where the file is, or will be.
        closed: the container does not run: nothing is written for now.
    """

    __slots__ = ("_directory", "_file", "_followers", "_limits", "closed")

    ready: Final = True
    lost: Final = 0

    def __init__(self, directory: Path, closed: bool, limits: Limits = UNLIMITED) -> None:
        self._directory = directory
        self._limits = limits
        self._file: LogFile | None = None
        self._followers: list[Follower] = []
        self.closed = closed

    @property
    def file(self) -> LogFile:
        if self._file is None:
            self._file = LogFile(self._directory, self._limits)
        return self._file

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def first(self) -> int:
        """The offset of the oldest frame that is left."""
        return self.file.first

    def end_offset(self) -> int:
        """The size, without opening what is not open."""
        return log_end(self._directory) if self._file is None else self._file.size

    def when_ready(self, callback: Callable[[], None]) -> None:
        """A log takes output at any time."""
        callback()

    def take(self, pipe: int, stream: int) -> int | None:
        """As `LogFile.append_from`, and to who follows."""
        file = self.file
        start = file.size
        moved = file.append_from(pipe, stream)
        if moved:
            self.appended(start)
        return moved

    def write(self, stream: int, payload: bytes, time_ns: int) -> None:
        """One frame, and to who follows. Raises OSError, and nothing was written."""
        start = self.file.size
        self.file.append(stream, payload, time_ns)
        self.appended(start)

    def follow(self, sink: Sink, offset: int, follow: bool) -> Follower:
        """Serve `sink` from `offset` on: to the log's present end, or until the container's."""
        follower = Follower(sink, Cursor(self.file, offset), follow, self.file.size)
        self._followers.append(follower)
        self.serve(follower)
        return follower

    def unfollow(self, follower: Follower) -> None:
        """Forget a reader that went away."""
        if follower in self._followers:
            self._followers.remove(follower)
            if follower.cursor is not None:
                follower.cursor.close()
        self._close_when_idle()

    def writable(self, follower: Follower) -> None:
        """His stream has credit again."""
        follower.blocked = False
        self.serve(follower)

    def appended(self, start: int) -> None:
        """A frame was written at `start`: send it to everybody who has all before it."""
        if not self._followers:
            return
        frame: bytes | None = None
        for follower in self._followers[:]:
            cursor = follower.cursor
            if cursor is None or follower.blocked or not follower.follow:
                continue
            if cursor.offset == start:
                if frame is None:
                    frame = self.file.read(start, self.file.size - start)
                cursor.offset += len(frame)
                follower.blocked = not follower.sink.write(frame)

    def serve(self, follower: Follower) -> None:
        """Send from the file until he is caught up or his stream takes no more."""
        cursor = follower.cursor
        if cursor is None or follower not in self._followers:
            return
        goal = self.file.size if follower.follow else follower.stop_at
        while cursor.offset < goal and not follower.blocked:
            follower.blocked = not follower.sink.write(cursor.read(SERVE_BYTES, goal))
        if cursor.offset >= goal and (self.closed or not follower.follow):
            self.unfollow(follower)
            follower.sink.end()

    def start(self) -> None:
        """The container runs: frames will come."""
        self.closed = False
        self._file = self.file

    def finish(self) -> None:
        """No frame comes any more: end everybody who has all; the others when they have it."""
        self.closed = True
        for follower in self._followers[:]:
            self.serve(follower)
        self._close_when_idle()

    def abandon(self) -> None:
        """Close the file whoever is reading, at the machine's shutdown."""
        self.closed = True
        for follower in self._followers[:]:
            self.unfollow(follower)
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        if self.closed and not self._followers and self._file is not None:
            self._file.close()
            self._file = None


class Unlogged:
    """A container's readers without a log. `size` goes on counting, as a log's offsets would.

    Args:
        expected: a reader is on his way: nothing is taken out of the pipes until he is there.
    """

    lost: Final = 0

    def __init__(self, loop: Loop, directory: Path, size: int, expected: bool) -> None:
        self._loop = loop
        self._directory = directory
        self.size = size
        self._followers: list[Follower] = []
        self._waiting: list[Callable[[], None]] = []
        self._expected = expected
        self._timer: Timer | None = None
        self.closed = True

    @property
    def first(self) -> int:
        return self.size

    @property
    def ready(self) -> bool:
        return not self._expected and not any(it.blocked for it in self._followers)

    def end_offset(self) -> int:
        return self.size

    def when_ready(self, callback: Callable[[], None]) -> None:
        """Call back once output can be taken; at once when it can."""
        if self.ready:
            callback()
        else:
            self._waiting.append(callback)

    def take(self, pipe: int, stream: int) -> int | None:
        """Move what the pipe holds (at most one frame's worth) to the readers.

        Returns:
            The payload's length; 0: the pipe is empty now; None: it is at its end.
        """
        length = available(pipe)
        if not length:
            return length
        data = os.read(pipe, min(length, PASSING_PAYLOAD))
        length = len(data)
        self.size += HEADER.size + length
        if self._followers:
            header = frame_header(stream, length, time.time_ns())
            for follower in self._followers[:]:
                follower.blocked = not follower.sink.write(header, data) or follower.blocked
        return length

    def follow(self, sink: Sink, offset: int, follow: bool) -> Follower:
        """Send `sink` what comes from now on."""
        follower = Follower(sink, None, follow, self.size)
        if self.closed or not follow:
            sink.end()
            return follower
        self._followers.append(follower)
        self._arrived()
        return follower

    def unfollow(self, follower: Follower) -> None:
        if follower in self._followers:
            self._followers.remove(follower)
            self._wake()

    def writable(self, follower: Follower) -> None:
        follower.blocked = False
        self._wake()

    def start(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # says that it has run
        self.closed = False
        if self._expected:
            self._timer = self._loop.call_later(FIRST_READER, self._arrived)

    def finish(self) -> None:
        self.closed = True
        self._arrived()
        followers, self._followers = self._followers, []
        for follower in followers:
            follower.sink.end()
        self._wake()

    def abandon(self) -> None:
        self.closed = True
        self._followers.clear()

    def _arrived(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._expected = False
        self._wake()

    def _wake(self) -> None:
        if not self.ready:
            return
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()
