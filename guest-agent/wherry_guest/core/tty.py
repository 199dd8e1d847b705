"""The container's terminal: a pty of its own devpts, the controlling terminal and stdio.

Rules: the pty is the container's (so `tty` says /dev/pts/0 and the device can be opened there); its
slave is opened through the master, never by a path that an image could have prepared; the master
goes up to PID 1 and on to the agent. tty_ioctl(4), ioctl_tty(2).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from wherry_guest.core.mounts import make_file
from wherry_guest.core.steps import SetupError

if TYPE_CHECKING:
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel

# asm-generic/ioctls.h
TIOCSCTTY: Final = 0x540E
TIOCSWINSZ: Final = 0x5414
TIOCSPTLCK: Final = 0x40045431
TIOCGPTPEER: Final = 0x5441

PTMX: Final = (5, 2)  # Documentation/admin-guide/devices.txt

_os: Final[Any] = os  # O_NOCTTY and O_NOFOLLOW exist on POSIX only; mypy checks all platforms


@dataclass(frozen=True, slots=True)
class OpenTerminal:
    """Open a pty in the container's devpts and send the master up. `size`: (rows, columns)."""

    size: tuple[int, int] | None

    def describe(self) -> str:
        return "open a terminal in /dev/pts"

    def execute(self, kernel: Kernel, state: State) -> None:
        flags = os.O_RDWR | _os.O_NOCTTY
        master = kernel.open("/dev/pts/ptmx", flags | _os.O_NOFOLLOW)
        if not kernel.stat(master).is_character_device(*PTMX):
            raise SetupError(f"{self.describe()}: /dev/pts/ptmx is no terminal multiplexer")
        kernel.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
        slave = kernel.ioctl(master, TIOCGPTPEER, flags)
        if self.size is not None:
            kernel.ioctl(master, TIOCSWINSZ, window_size(*self.size))
        state.send_terminal(master)
        kernel.close(master)
        state.terminal = slave


@dataclass(frozen=True, slots=True)
class BindConsole:
    """Let the terminal be /dev/console too."""

    def describe(self) -> str:
        return "bind the terminal to /dev/console"

    def execute(self, kernel: Kernel, state: State) -> None:
        if state.terminal is None:
            raise SetupError(f"{self.describe()}: there is no terminal")
        make_file(kernel, "/dev/console")
        tree = kernel.open_tree("", False, state.terminal)
        kernel.move_mount(tree, "/dev/console")
        kernel.close(tree)


@dataclass(frozen=True, slots=True)
class UseTerminal:
    """Make the terminal the controlling one (of a session that was just begun) and stdio."""

    def describe(self) -> str:
        return "make the terminal the controlling one"

    def execute(self, kernel: Kernel, state: State) -> None:
        slave = state.terminal
        if slave is None:
            raise SetupError(f"{self.describe()}: there is no terminal")
        kernel.ioctl(slave, TIOCSCTTY, 0)
        for fd in (0, 1, 2):
            kernel.dup2(slave, fd)
        kernel.close(slave)


def window_size(rows: int, columns: int) -> bytes:
    """struct winsize; sizes beyond 16 bits are cut to the largest."""
    return struct.pack("HHHH", min(rows, 0xFFFF), min(columns, 0xFFFF), 0, 0)
