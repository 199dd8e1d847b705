"""A container's log: a file of frames, and the readers that follow it.

Rules:

- *The log is the truth.* A frame is in the file before anybody is sent it; offsets count its bytes.
- *Nothing is lost when the agent is killed.* Output goes from pipe to file by splice(2): the kernel
  takes out of the pipe exactly what it put into the file, whatever interrupts it. The header, which
  states the length, is written first; a last frame that is shorter than its header says gets its
  real length at the next opening, and what is missing is still in the pipe.
- *A slow reader costs nothing.* Who is caught up gets a frame as it is written; who is not is
  served from the file when his stream has credit again.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import Any, Final, Protocol

from wherry_guest.agent.kernel import bytes_available, hung_up

STDOUT: Final = 1
STDERR: Final = 2

HEADER: Final = struct.Struct(">BBHIQ")
"""docs/agent-calls.md: stream, flags (0), reserved (0), payload length, time_ns."""

MAX_PAYLOAD: Final = 64 * 1024

FULL_PAYLOAD: Final = 60 * 1024
"""What we put into one frame: whole pages, and with its header it fits one frame of the wire."""

CHECKPOINT_STEP: Final = 1 << 20
"""Bytes of log after which a frame boundary is noted: an opening scans no more than this."""

SERVE_BYTES: Final = 256 * 1024
"""How much one read of the file brings for a reader that is behind."""

# Names of the standard library that exist on Linux only; mypy checks this file for all platforms.
_os: Final[Any] = os


def frame_header(stream: int, length: int, time_ns: int) -> bytes:
    """The 16 bytes before a payload."""
    return HEADER.pack(stream, 0, 0, length, time_ns)


def payload_length(header: bytes) -> int | None:
    """The length that a header states; None when these 16 bytes are no header."""
    stream, flags, reserved, length, _ = HEADER.unpack(header)
    if stream not in (STDOUT, STDERR) or flags or reserved or not 0 < length <= MAX_PAYLOAD:
        return None
    return int(length)


class Sink(Protocol):
    """Where a follower's bytes go: the guest's end of a stream."""

    def write(self, data: bytes) -> bool:
        """Take all of `data`; False: no more, please, until the stream is writable again."""

    def end(self) -> None:
        """Half-close."""


class LogFile:
    """The file. One writer; `size` is the end of the last whole frame.

    Raises (all methods): OSError, from the disk.
    """

    __slots__ = ("_checkpoint", "_checkpointed", "_fd", "_notes", "size")

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(directory / "log", os.O_RDWR | os.O_CREAT | _os.O_CLOEXEC, 0o600)
        self._checkpoint = directory / "checkpoint"
        self._checkpointed = 0
        self._notes = -1
        self.size = self._recover()

    def append(self, stream: int, payload: bytes, time_ns: int) -> None:
        """Write one frame; on an error the file is as before."""
        header = frame_header(stream, len(payload), time_ns)
        start = self.size
        try:
            self._write_all(start, header + payload)
        except OSError:
            os.ftruncate(self._fd, start)
            raise
        self._committed(start + HEADER.size + len(payload))

    def append_from(self, pipe: int, stream: int) -> int | None:
        """Move what the pipe holds (at most one frame's worth) to the end of the log.

        Returns:
            The payload's length; 0: the pipe is empty now; None: it is at its end.

        Raises:
            OSError: ENOSPC and the like, and nothing was moved.
        """
        length = bytes_available(pipe)
        if not length:
            # In this order: what was written before the last writer left is seen by the second
            # look.
            if not hung_up(pipe):
                return 0
            if not (length := bytes_available(pipe)):
                return None
        if length > FULL_PAYLOAD:
            length = FULL_PAYLOAD
        start = self.size
        payload = start + HEADER.size
        _os.pwrite(self._fd, HEADER.pack(stream, 0, 0, length, time.time_ns()), start)
        moved = self._splice(pipe, payload, length)
        if moved != length:
            self._shorten(start, moved)
        self._committed(payload + moved)
        return moved

    def read(self, offset: int, limit: int) -> bytes:
        """At most `limit` bytes from `offset` on; b"" at the end."""
        data: bytes = _os.pread(self._fd, min(limit, self.size - offset), offset)
        return data

    def close(self) -> None:
        for fd in (self._fd, self._notes):
            if fd >= 0:
                os.close(fd)

    def _splice(self, pipe: int, at: int, length: int) -> int:
        """Move `length` bytes that are known to be there; fewer when the disk is full."""
        moved = 0
        while moved < length:
            try:
                moved += _os.splice(pipe, self._fd, length - moved, None, at + moved)
            except OSError:
                if moved:
                    return moved  # this much is safe; the next call meets the error again
                os.ftruncate(self._fd, at - HEADER.size)
                raise
        return moved

    def _shorten(self, start: int, length: int) -> None:
        stream, _, _, _, time_ns = HEADER.unpack(_os.pread(self._fd, HEADER.size, start))
        _os.pwrite(self._fd, frame_header(stream, length, time_ns), start)

    def _committed(self, size: int) -> None:
        self.size = size
        if size - self._checkpointed >= CHECKPOINT_STEP:
            self._note(size)

    def _note(self, boundary: int) -> None:
        """Always in place and left open: ext4 may force what is closed to the disk."""
        if self._notes < 0:
            flags = os.O_WRONLY | os.O_CREAT | _os.O_CLOEXEC
            self._notes = os.open(self._checkpoint, flags, 0o600)
        _os.pwrite(self._notes, boundary.to_bytes(8, "big"), 0)
        self._checkpointed = boundary

    def _write_all(self, at: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = _os.pwrite(self._fd, view, at)
            at += written
            view = view[written:]

    def _recover(self) -> int:
        """Find the end of the last whole frame and cut or shorten what comes after it."""
        end = os.fstat(self._fd).st_size
        checkpoint = 0
        if self._checkpoint.exists():
            checkpoint = int.from_bytes(self._checkpoint.read_bytes(), "big")
        if checkpoint > end:
            checkpoint = 0  # the machine lost power, and the log's own end with it
        self._checkpointed = checkpoint
        good = self._scan(checkpoint, end)
        if good == checkpoint != end:
            good = self._scan(0, end)  # not one frame there: what was noted is no boundary
        header = _os.pread(self._fd, HEADER.size, good)
        if len(header) == HEADER.size and payload_length(header) is not None:
            have = end - good - HEADER.size
            if have > 0:
                self._shorten(good, have)
                return end
        os.ftruncate(self._fd, good)
        return good

    def _scan(self, position: int, end: int) -> int:
        """The offset of the first frame that is not whole, or `end`."""
        block, base = b"", position
        while position + HEADER.size <= end:
            at = position - base
            if at + HEADER.size > len(block):
                block, base, at = _os.pread(self._fd, SERVE_BYTES, position), position, 0
            length = payload_length(block[at : at + HEADER.size])
            if length is None or position + HEADER.size + length > end:
                return position
            position += HEADER.size + length
        return position


class Follower:
    """One reader of a log. `offset` is what he has been sent up to."""

    __slots__ = ("blocked", "follow", "offset", "sink", "stop_at")

    def __init__(self, sink: Sink, offset: int, follow: bool, stop_at: int) -> None:
        self.sink = sink
        self.offset = offset
        self.follow = follow
        self.stop_at = stop_at
        """Without `follow`: the log's end when he came."""
        self.blocked = False


class Log:
    """A container's log file with its followers; opened when it is needed.

    Args:
        directory: where the file is, or will be.
        closed: the container does not run: nothing is written for now.
    """

    __slots__ = ("_directory", "_file", "_followers", "closed")

    def __init__(self, directory: Path, closed: bool) -> None:
        self._directory = directory
        self._file: LogFile | None = None
        self._followers: list[Follower] = []
        self.closed = closed

    @property
    def file(self) -> LogFile:
        if self._file is None:
            self._file = LogFile(self._directory)
        return self._file

    @property
    def size(self) -> int:
        return self.file.size

    def follow(self, sink: Sink, offset: int, follow: bool) -> Follower:
        """Serve `sink` from `offset` on: to the log's present end, or until the container's."""
        follower = Follower(sink, offset, follow, stop_at=self.file.size)
        self._followers.append(follower)
        self.serve(follower)
        return follower

    def unfollow(self, follower: Follower) -> None:
        """Forget a reader that went away."""
        if follower in self._followers:
            self._followers.remove(follower)
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
            if follower.offset == start and not follower.blocked and follower.follow:
                if frame is None:
                    frame = self.file.read(start, self.file.size - start)
                follower.offset += len(frame)
                follower.blocked = not follower.sink.write(frame)

    def serve(self, follower: Follower) -> None:
        """Send from the file until he is caught up or his stream takes no more."""
        goal = self.file.size if follower.follow else follower.stop_at
        while follower.offset < goal and not follower.blocked:
            data = self.file.read(follower.offset, min(SERVE_BYTES, goal - follower.offset))
            follower.offset += len(data)
            follower.blocked = not follower.sink.write(data)
        if follower.offset >= goal and (self.closed or not follower.follow):
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
        self._followers.clear()
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        if self.closed and not self._followers and self._file is not None:
            self._file.close()
            self._file = None
