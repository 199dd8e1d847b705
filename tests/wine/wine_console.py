"""A program of Windows in a console: Wine makes one of the terminal that it is started in.

As far as Wine 8 goes: letters, Ctrl-C, the first size; no arrow keys, no new sizes.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

from wine_tier import WINE, Windows, windows_path

ROWS, COLUMNS = 30, 100
CTRL_C = b"\x03"


class ConsoleProgram:
    def __init__(self, pid: int, terminal: int) -> None:
        self._pid = pid
        self._terminal = terminal
        self._status: int | None = None
        self.said = b""

    def expect(self, text: str, seconds: float = 60.0) -> None:
        """Wait until it has said `text`."""
        deadline = time.monotonic() + seconds
        while text.encode() not in self.said:
            left = deadline - time.monotonic()
            assert left > 0, f"it did not say {text!r} but {self.said[-500:]!r}"
            assert self._hear(left), f"it ended without {text!r}: {self.said[-500:]!r}"

    def type(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    def status(self, seconds: float = 60.0) -> int:
        """Its exit status, when it ends within so many seconds."""
        deadline = time.monotonic() + seconds
        while self._status is None:
            left = deadline - time.monotonic()
            assert left > 0, f"it did not end; it said {self.said[-500:]!r}"
            if not self._hear(min(left, 0.1)):
                self._reap()
        return self._status

    def end(self) -> None:
        if self._status is None:
            os.kill(self._pid, signal.SIGKILL)
            self._reap()
        os.close(self._terminal)

    def _hear(self, seconds: float) -> bool:
        """False at the end of the output."""
        readable, _, _ = select.select([self._terminal], [], [], seconds)
        if readable:
            try:
                self.said += os.read(self._terminal, 65536)
            except OSError:  # EIO: nobody has the terminal any more
                return False
        elif self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return True

    def _reap(self) -> None:
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


@contextmanager
def in_console(windows: Windows, *arguments: str, **more: str) -> Iterator[ConsoleProgram]:
    """Windows' python with these arguments, in a console of its own."""
    argv = [WINE, windows_path(windows.python), *arguments]
    environment = windows.environment({"TERM": "xterm", **more})
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    pid = os.posix_spawn(
        "/usr/bin/setsid",
        ["setsid", "--ctty", *argv],
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, its, descriptor) for descriptor in (0, 1, 2)],
    )
    os.close(its)
    program = ConsoleProgram(pid, ours)
    try:
        yield program
    finally:
        program.end()
