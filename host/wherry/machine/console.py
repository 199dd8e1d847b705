"""The guest's serial console: heard from the first byte, kept within bounds.

QEMU offers it on a socket and drops what nobody reads. While an engine runs it reads it, watches
for the agent's markers and keeps the end of it in a file of at most CONSOLE_LIMIT bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from pathlib import Path

from wherry.osutil import has_no_room
from wherry.osutil.local import open_local

CONSOLE_LIMIT = 1 << 20
_CHUNK = 65536
_LINE_LIMIT = 4096
_TAIL_LINES = 30

MARKERS = {b"wherry: init": "init", b"wherry: agent": "agent"}
"""Lines that tell how far the guest is (docs/agent-calls.md): marker to the phase it opens."""
FATAL = b"wherry: fatal:"
_PANIC = b"Kernel panic - "
"""kernel/panic.c; what follows is a stack, so the reason would not be among the last lines."""


class ConsoleFile:
    """A file that holds the last bytes of a stream, at most `limit`."""

    def __init__(self, path: Path, limit: int = CONSOLE_LIMIT) -> None:
        self._path = path
        self._limit = limit
        self._file = path.open("ab", buffering=0)
        self._size = self._file.tell()

    def write(self, data: bytes) -> None:
        """What a full disk does not take is lost."""
        try:
            self._file.write(data)
            self._size += len(data)
            if self._size > self._limit:
                self._drop_old()
        except OSError as error:
            if not has_no_room(error):
                raise

    def close(self) -> None:
        self._file.close()

    def _drop_old(self) -> None:
        """Keep the newer half, from a line's beginning on."""
        with self._path.open("rb") as old:
            old.seek(-min(self._limit // 2, self._size), os.SEEK_END)
            kept = old.read()
        kept = kept[kept.find(b"\n") + 1 :]
        self._file.truncate(0)
        self._size = 0
        self._file.write(kept)  # it appends
        self._size = len(kept)


class Console:
    """Reads the console's socket until QEMU ends. Made by `connect`, ended by `aclose`.

    Attributes:
        fatal, panic: what PID 1, or the kernel, gave up with; None while they have not.
        ended: whether QEMU has closed it.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, file: Path
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._file = ConsoleFile(file)
        self._lines: deque[str] = deque(maxlen=_TAIL_LINES)
        self._partial = b""
        self._seen: set[str] = set()
        self._changed = asyncio.Event()
        self.fatal: str | None = None
        self.panic: str | None = None
        self.ended = False
        self._task = asyncio.create_task(self._read(), name="guest console")

    @classmethod
    async def connect(cls, socket: Path, file: Path) -> Console:
        """Raises OSError when nobody listens."""
        reader, writer = await open_local(socket)
        return cls(reader, writer, file)

    def begin_with(self, earlier: bytes) -> None:
        """Keep what the guest printed before it was saved; it is not taken for news of this one."""
        self._file.write(earlier)

    def tail(self) -> list[str]:
        """The last lines, oldest first."""
        partial = [_text(self._partial)] if self._partial.strip() else []
        return [*self._lines, *partial]

    async def wait_for(self, phase: str) -> bool:
        """Wait until the guest has printed the marker of `phase`.

        False when it printed a fatal error (`fatal`) or the console ended first.
        """
        while phase not in self._seen:
            if self.fatal is not None or self.ended:
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    async def wait_ended(self) -> None:
        """Wait for a fatal error or the end of the console."""
        while self.fatal is None and not self.ended:
            self._changed.clear()
            await self._changed.wait()

    async def aclose(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._writer.close()
        with contextlib.suppress(OSError):  # QEMU may be gone: closed all the same
            await self._writer.wait_closed()
        self._file.close()

    async def _read(self) -> None:
        try:
            while data := await self._reader.read(_CHUNK):
                self._file.write(data)
                self._take(data)
        except ConnectionError:
            pass  # QEMU was killed: the end, like any other
        finally:
            self.ended = True
            self._changed.set()

    def _take(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[-_LINE_LIMIT:]
        for line in lines:
            if text := _text(line):
                self._lines.append(text)
            self._look_for_markers(line)

    def _look_for_markers(self, line: bytes) -> None:
        """The kernel may print its own text before ours on the same line."""
        if _PANIC in line and self.panic is None:
            self.panic = _text(line[line.index(_PANIC) :])
        if FATAL in line:
            self.fatal = _text(line.partition(FATAL)[2])
            self._changed.set()
        for marker, phase in MARKERS.items():
            if line.rstrip().endswith(marker):
                self._seen.add(phase)
                self._changed.set()


def _text(line: bytes) -> str:
    """A line for people: no control characters, a guest must not drive the host's terminal."""
    text = line[:_LINE_LIMIT].decode("utf-8", errors="replace").strip()
    return "".join(char if char.isprintable() else "�" for char in text)


def tail_of(log: Path, lines: int) -> str:
    """The last lines of a console's log, empty when there is none. Reads a file."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return "".join(text.splitlines(keepends=True)[-lines:]) if lines > 0 else ""
