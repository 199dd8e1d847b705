"""The port that the guest's end of the link runs over: opening, reading, writing, hang-ups.

The rule: it moves bytes between a descriptor and a `wire.Connection` and knows nothing of calls.
The descriptor is a virtio-serial port, which is unlike a socket: without a host it reads as ended
and polls as hung up *for ever*, so it is then asked by a timer instead; and a host that went and
came again between two reads shows only by its HELLO. A socket works too, or a pair of pipes: when
they end, they are opened anew. Stdlib only; imports anywhere, runs where there is `os.readv`.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from wherry_guest import wire
from wherry_guest.loop import Loop, Timer

_os: Final[Any] = os
"""For names that only POSIX systems have: a type checker may be checking for Windows."""

PORT_NAME: Final = "wherry.agent"

READ_PIECE: Final = 4096
"""A read of a virtio-serial port gives at most one of the driver's page-sized buffers (Linux,
drivers/char/virtio_console.c, fill_readbuf); one readv gathers many of them."""

READ_PIECES: Final = 32
OUTPUT_BATCH: Final = 256 * 1024
"""Bytes taken from the connection at a time: what an urgent frame may have to wait for."""

ROUND_LIMIT: Final = 512 * 1024
"""Bytes read or written before other descriptors get their turn."""

LOOK_FIRST: Final = 0.001
LOOK_LIMIT: Final = 0.05
"""Seconds between two looks for a host: at first, and after back-off."""


class Ends(NamedTuple):
    """What we read and what we write; the same, or two pipes.

    `piece`: bytes that a write may have at most; 0: as many as there are.
    """

    reader: int
    writer: int
    piece: int = 0


class Port:
    """Connects a `wire.Connection` to the host, whenever there is one.

    Args:
        open_port: gives a descriptor (or two) that we own and close, or raises OSError when there
            is none yet (it is then tried again).
        dispatch: takes what the connection says.
        on_end: called when the host's end is gone and all is closed; the port is of no use then.
            Without it, the host is waited for.
    """

    def __init__(
        self,
        loop: Loop,
        open_port: Callable[[], int | Ends],
        conn: wire.Connection,
        dispatch: Callable[[list[wire.Event]], None],
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self._loop = loop
        self._open_port = open_port
        self._conn = conn
        self._dispatch = dispatch
        self._on_end = on_end
        self._fd = self._out = -1
        self._piece = 0
        self._reopens = False
        self._look_after = LOOK_FIRST
        self._look_timer: Timer | None = None
        self._tick_timer: Timer | None = None
        self._flush_due = False
        self._writing = False
        self._backlog: deque[wire.Buffer] = deque()
        self._waiting = 0
        self._pages = memoryview(bytearray(READ_PIECE * READ_PIECES))
        self._pieces = [
            self._pages[at : at + READ_PIECE] for at in range(0, len(self._pages), READ_PIECE)
        ]

    def start(self) -> None:
        """Open the port, now or as soon as there is one."""
        self._open()

    def close(self) -> None:
        """Give the port back; what was not written yet is dropped."""
        self._abandon()
        for timer in (self._look_timer, self._tick_timer):
            if timer is not None:
                timer.cancel()
        self._close_ends()

    def flush_soon(self) -> None:
        """Write what the connection has to send, at the end of this round."""
        if not self._flush_due and not self._writing:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _open(self) -> None:
        try:
            opened = self._open_port()
        except OSError:
            self._look_later(self._open)
            return
        ends = opened if isinstance(opened, Ends) else Ends(opened, opened)
        self._fd, self._out, self._piece = ends
        for end in (self._fd, self._out):
            _os.set_blocking(end, False)
        self._reopens = not stat.S_ISCHR(os.fstat(self._fd).st_mode)
        self._look()

    def _look(self) -> None:
        """Find out whether a host is there: with none, a virtio-serial port reads as ended."""
        try:
            data = os.read(self._fd, READ_PIECE)
        except BlockingIOError:
            data = None
        except OSError:
            data = b""
        if data == b"":
            self._host_gone()
            return
        self._look_after = LOOK_FIRST
        self._loop.add_reader(self._fd, self._on_readable)
        self._conn.begin()
        if data:
            self._dispatch(self._conn.receive(data))
        self.flush_soon()
        self._arm_tick()

    def _look_later(self, look: Callable[[], None]) -> None:
        self._look_timer = self._loop.call_later(self._look_after, look)
        self._look_after = min(2 * self._look_after, LOOK_LIMIT)

    def _host_gone(self) -> None:
        self._abandon()
        if self._on_end is not None:
            self.close()
            self._on_end()
        elif self._reopens:
            self._close_ends()
            self._look_later(self._open)
        else:
            self._look_later(self._look)

    def _abandon(self) -> None:
        self._conn.lost()
        self._backlog.clear()
        self._waiting = 0
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._out)
        self._writing = False

    def _close_ends(self) -> None:
        for end in {self._fd, self._out} - {-1}:
            os.close(end)
        self._fd = self._out = -1

    def _on_readable(self) -> None:
        budget = ROUND_LIMIT
        wanted = READ_PIECE  # enough for a call, and quicker than a readv
        while budget > 0 and self._fd >= 0:  # a handler may close us
            try:
                data = self._read(wanted)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._host_gone()
                return
            budget -= len(data)
            self._dispatch(self._conn.receive(data))
            if len(data) < wanted:
                break  # most likely empty; if not, the loop says so
            wanted = len(self._pages)
        self.flush_soon()
        self._arm_tick()

    def _read(self, wanted: int) -> bytes:
        if wanted == READ_PIECE:
            return os.read(self._fd, READ_PIECE)
        count: int = _os.readv(self._fd, self._pieces)
        return bytes(self._pages[:count])

    def _arm_tick(self) -> None:
        patience = self._conn.patience
        if self._tick_timer is None and patience is not None:
            self._tick_timer = self._loop.call_later(patience, self._tick)

    def _tick(self) -> None:
        self._tick_timer = None
        self._dispatch(self._conn.tick())
        self.flush_soon()
        self._arm_tick()

    def _flush(self) -> None:
        """Write what the port takes. While it is full, the loop's writer goes on with it."""
        self._flush_due = False
        if self._fd < 0 or self._conn.state is wire.State.DOWN:
            return
        budget = ROUND_LIMIT
        while budget > 0:
            if not self._backlog and not self._refill():
                self._set_writing(False)
                return
            try:
                count = _os.writev(self._out, self._next())
            except BlockingIOError:
                break
            except OSError:
                self._host_gone()
                return
            budget -= count
            self._written(count)
        self._set_writing(True)

    def _refill(self) -> bool:
        pieces = self._conn.take(OUTPUT_BATCH)
        if not pieces:
            return False
        self._waiting = sum(map(len, pieces))
        self._backlog.extend(pieces)
        if events := self._conn.events():
            self._dispatch(events)
        return True

    def _next(self) -> Iterable[wire.Buffer]:
        """What one write takes of the backlog."""
        if not self._piece:
            return self._backlog
        taken, room = [], self._piece
        for part in self._backlog:
            taken.append(memoryview(part)[:room])
            room -= len(taken[-1])
            if not room:
                break
        return taken

    def _written(self, count: int) -> None:
        backlog = self._backlog
        self._waiting -= count
        if not self._waiting:
            backlog.clear()
            return
        while count:
            head = backlog[0]
            if count < len(head):
                backlog[0] = memoryview(head)[count:]
                return
            count -= len(head)
            backlog.popleft()

    def _set_writing(self, on: bool) -> None:
        if on and not self._writing:
            self._loop.add_writer(self._out, self._flush)
        elif self._writing and not on:
            self._loop.remove_writer(self._out)
        self._writing = on


def open_agent_port(name: str = PORT_NAME) -> int:
    """Open the virtio-serial port that the host gave this name.

    By its name from udev where there is one, else by what /sys says of each port.

    Raises:
        OSError: there is no such port (yet), or somebody has it open (EBUSY).
    """
    flags = _os.O_RDWR | _os.O_NONBLOCK | _os.O_CLOEXEC
    named = Path("/dev/virtio-ports", name)
    if named.exists():
        return os.open(named, flags)
    for name_file in Path("/sys/class/virtio-ports").glob("*/name"):
        if name_file.read_text().strip() == name:
            return os.open(Path("/dev", name_file.parent.name), flags)
    raise FileNotFoundError(f"no virtio-serial port is named {name}")
