"""A container's log on the data disk: frames in one file, or in several of which the oldest go.

Rules:

- *Offsets count the frames' bytes from the container's first start on*, whatever has been dropped
  since: a file's name says the offset at which it begins (`log` is 0, then `log.OFFSET`), so that
  there is no other record of the rotation that could disagree.
- *Nothing is lost when the agent is killed.* Output goes from pipe to file by splice(2): the kernel
  takes out of the pipe exactly what it put into the file, whatever interrupts it. The header, which
  states the length, is written first; a last frame that is shorter than its header says gets its
  real length at the next opening, and what is missing is still in the pipe.
- *A file that somebody reads stays readable* to its end, though it is rotated away meanwhile; what
  lies between it and the oldest one that is left is told to him as a gap.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wherry_guest.agent.kernel import bytes_available, hung_up, make_directory
from wherry_guest.agent.logframes import (
    FULL_PAYLOAD,
    HEADER,
    frame_header,
    gap_frame,
    payload_length,
)

CHECKPOINT_STEP: Final = 1 << 20
"""Bytes of log after which a frame boundary is noted: an opening scans no more than this."""

SERVE_BYTES: Final = 256 * 1024
"""How much one read of the file brings for a reader that is behind."""

_SEGMENT: Final = re.compile(r"log(?:\.([1-9][0-9]*))?")

# Names of the standard library that exist on Linux only; mypy checks this file for all platforms.
_os: Final[Any] = os


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_size` bytes begin another file (0: never); of these `max_files` are kept."""

    max_size: int = 0
    max_files: int = 1


UNLIMITED: Final = Limits()


def log_end(directory: Path) -> int:
    """The length of a log that nobody has open; 0 when there is none."""
    found = _segments(directory)
    if not found:
        return 0
    base = max(found)
    return base + found[base].stat().st_size


class Segment:
    """One file of the log. `end` is None while it is written to; open while it has holders."""

    __slots__ = ("_fd", "_holders", "_path", "base", "end")

    def __init__(self, path: Path, base: int, end: int | None) -> None:
        self._path = path
        self.base = base
        self.end = end
        self._fd = -1
        self._holders = 0

    def open(self) -> int:
        """One holder more; the descriptor. Raises OSError."""
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | _os.O_CLOEXEC, 0o600)
        self._holders += 1
        return self._fd

    def close(self) -> None:
        """One holder less."""
        self._holders -= 1
        if not self._holders:
            os.close(self._fd)
            self._fd = -1

    def read(self, offset: int, limit: int) -> bytes:
        data: bytes = _os.pread(self._fd, limit, offset - self.base)
        return data

    def unlink(self) -> None:
        self._path.unlink(missing_ok=True)


class Cursor:
    """One reader's place. `offset` is what he has read up to. Close it."""

    __slots__ = ("_file", "_segment", "offset")

    def __init__(self, file: LogFile, offset: int) -> None:
        self._file = file
        self.offset = max(offset, file.first)
        self._segment = file.segment_at(self.offset)
        self._segment.open()

    def read(self, limit: int, goal: int) -> bytes:
        """At most `limit` bytes of frames up to `goal`, or the frame of a gap; b"" at the goal."""
        end = self._segment.end
        if end is not None and self.offset >= end:
            self._segment.close()
            self._segment = self._file.segment_at(self.offset)
            self._segment.open()
            if skipped := self._segment.base - min(self.offset, self._segment.base):
                self.offset += skipped
                return gap_frame(skipped)
            end = self._segment.end
        left = min(goal, goal if end is None else end) - self.offset
        if left <= 0:
            return b""
        data = self._segment.read(self.offset, min(limit, left))
        self.offset += len(data)
        return data

    def close(self) -> None:
        self._segment.close()


class LogFile:
    """The log's files. One writer; `size` is the end of the last whole frame.

    Raises (all methods): OSError, from the disk.
    """

    __slots__ = (
        "_checkpoint",
        "_checkpointed",
        "_directory",
        "_fd",
        "_limits",
        "_notes",
        "_segments",
        "size",
    )

    def __init__(self, directory: Path, limits: Limits = UNLIMITED) -> None:
        fresh = make_directory(str(directory), 0o700)
        self._directory = directory
        self._limits = limits
        self._checkpoint = directory / "checkpoint"
        self._checkpointed = 0
        self._notes = -1
        self._segments = [_segment(directory, 0)] if fresh else _unbroken(directory)
        self._fd = self._segments[-1].open()
        self.size = 0 if fresh else self._recover()

    @property
    def first(self) -> int:
        """The offset of the oldest frame that is left."""
        return self._segments[0].base

    def segment_at(self, offset: int) -> Segment:
        """The file that holds `offset`, or the oldest one when that is gone."""
        for segment in reversed(self._segments):
            if segment.base <= offset:
                return segment
        return self._segments[0]

    def append(self, stream: int, payload: bytes, time_ns: int) -> None:
        """Write one frame; on an error the file is as before."""
        self._rotate_when_full()
        header = frame_header(stream, len(payload), time_ns)
        at = self.size - self._segments[-1].base
        try:
            self._write_all(at, header + payload)
        except OSError:
            os.ftruncate(self._fd, at)
            raise
        self._committed(self.size + HEADER.size + len(payload))

    def append_from(self, pipe: int, stream: int) -> int | None:
        """Move what the pipe holds (at most one frame's worth) to the end of the log.

        Returns:
            The payload's length; 0: the pipe is empty now; None: it is at its end.

        Raises:
            OSError: ENOSPC and the like, and nothing was moved.
        """
        length = available(pipe)
        if not length:
            return length
        self._rotate_when_full()
        if length > FULL_PAYLOAD:
            length = FULL_PAYLOAD
        start = self.size - self._segments[-1].base
        payload = start + HEADER.size
        _os.pwrite(self._fd, HEADER.pack(stream, 0, 0, length, time.time_ns()), start)
        moved = self._splice(pipe, payload, length)
        if moved != length:
            self._shorten(start, moved)
        self._committed(self.size + HEADER.size + moved)
        return moved

    def read(self, offset: int, limit: int) -> bytes:
        """At most `limit` bytes from `offset` on, of the file being written; b"" at the end."""
        data: bytes = _os.pread(
            self._fd, min(limit, self.size - offset), offset - self._segments[-1].base
        )
        return data

    def close(self) -> None:
        """Readers' cursors stay good."""
        self._segments[-1].close()
        if self._notes >= 0:
            os.close(self._notes)

    def _rotate_when_full(self) -> None:
        limits, current = self._limits, self._segments[-1]
        if not limits.max_size or self.size - current.base < limits.max_size:
            return
        fresh = _segment(self._directory, self.size)
        fd = fresh.open()
        current.end = self.size
        current.close()
        self._fd = fd
        self._segments.append(fresh)
        while len(self._segments) > limits.max_files:
            self._segments.pop(0).unlink()

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
        base = self._segments[-1].base
        end = os.fstat(self._fd).st_size
        noted = 0
        if self._checkpoint.exists():
            noted = int.from_bytes(self._checkpoint.read_bytes(), "big") - base
        if not 0 <= noted <= end:
            noted = 0  # an older file's, or the machine lost power, and the log's own end with it
        self._checkpointed = base + noted
        good = self._scan(noted, end)
        if good == noted != end:
            good = self._scan(0, end)  # not one frame there: what was noted is no boundary
        header = _os.pread(self._fd, HEADER.size, good)
        if len(header) == HEADER.size and payload_length(header) is not None:
            have = end - good - HEADER.size
            if have > 0:
                self._shorten(good, have)
                return base + end
        if good != end:
            os.ftruncate(self._fd, good)
        return base + good

    def _scan(self, position: int, end: int) -> int:
        """The place in the file of the first frame that is not whole, or `end`."""
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


def available(pipe: int) -> int | None:
    """The bytes that a pipe holds; 0: none now; None: it is at its end."""
    if length := bytes_available(pipe):
        return length
    # In this order: what was written before the last writer left is seen by the second look.
    if not hung_up(pipe):
        return 0
    return bytes_available(pipe) or None


def _segment(directory: Path, base: int, end: int | None = None) -> Segment:
    return Segment(directory / (f"log.{base}" if base else "log"), base, end)


def _segments(directory: Path) -> dict[int, Path]:
    """The files by the offset at which each begins."""
    try:
        names = os.listdir(directory)  # noqa: PTH208  # names only, without a Path for each
    except FileNotFoundError:
        return {}
    found = {}
    for name in names:
        if match := _SEGMENT.fullmatch(name):
            found[int(match[1] or 0)] = directory / name
    return found


def _unbroken(directory: Path) -> list[Segment]:
    """The files in order; what a power cut has shortened goes, with all that is older."""
    found = _segments(directory)
    if not found:
        return [_segment(directory, 0)]
    bases = sorted(found)
    segments = [_segment(directory, bases[-1])]
    for base, following in zip(reversed(bases[:-1]), reversed(bases), strict=False):
        if base + found[base].stat().st_size != following:
            for lost in (it for it in bases if it <= base):
                found[lost].unlink()
            break
        segments.insert(0, _segment(directory, base, following))
    return segments
