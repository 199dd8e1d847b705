"""Terminals: handing a pty's master to a console socket, or serving it from our own terminal.

Rules: the master comes from the container's own devpts; who has the console socket owns it then.
Without one, `run` and `exec` copy between it and our stdio until the process has ended.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wherry_guest.core.tty import TIOCSWINSZ, window_size
from wherry_guest.oci.errors import OciError

_TIOCGWINSZ: Final = 0x5413  # asm-generic/ioctls.h
_PIECE: Final = 65536

_os: Final[Any] = os
_select: Final[Any] = select
_signal: Final[Any] = signal
_socket: Final[Any] = socket


def connect(path: Path) -> socket.socket:
    """A connection to the console socket; OciError."""
    sock = socket.socket(_socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(os.fspath(path))
    except OSError as error:
        sock.close()
        raise OciError(f"--console-socket {path}: {error.strerror}") from error
    return sock


def send_master(sock: socket.socket, master: int) -> None:
    """Send the pty's master, with a name for it as runc does."""
    _socket.send_fds(sock, [b"/dev/pts/0"], [master])


@dataclass(slots=True)
class Terminal:
    """Our own terminal in front of a container's."""

    master: int
    pid: int

    def serve(self) -> None:
        """Copy both ways until the container's end of the terminal is closed."""
        import termios
        import tty

        modes: Any = termios
        raw: Any = tty
        saved = modes.tcgetattr(0) if os.isatty(0) else None
        _signal.signal(_signal.SIGWINCH, lambda number, frame: self._resize())
        self._resize()
        try:
            if saved is not None:
                raw.setraw(0)
            self._copy()
        finally:
            if saved is not None:
                modes.tcsetattr(0, modes.TCSADRAIN, saved)
            os.close(self.master)

    def _copy(self) -> None:
        poller = _select.poll()
        poller.register(self.master, _select.POLLIN)
        poller.register(0, _select.POLLIN)
        ended: int = _os.pidfd_open(self.pid)
        poller.register(ended, _select.POLLIN)
        try:
            while True:
                ready = [fd for fd, _ in poller.poll()]
                if self.master in ready:
                    if not self._show():
                        return
                elif ended in ready:  # what it left behind in the background may go on
                    return
                if 0 in ready and not self._type():
                    poller.unregister(0)
        finally:
            os.close(ended)

    def _show(self) -> bool:
        try:
            data = os.read(self.master, _PIECE)
        except OSError:  # EIO: nobody has the other end any more
            return False
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]
        return bool(data)

    def _type(self) -> bool:
        data = os.read(0, _PIECE)
        view = memoryview(data)
        while view:
            view = view[os.write(self.master, view) :]
        return bool(data)

    def _resize(self) -> None:
        import fcntl

        if not os.isatty(sys.stdin.fileno()):
            return
        ioctl: Any = fcntl
        size = ioctl.ioctl(0, _TIOCGWINSZ, bytes(8))
        rows, columns, _, _ = struct.unpack("HHHH", size)
        ioctl.ioctl(self.master, TIOCSWINSZ, window_size(rows, columns))
