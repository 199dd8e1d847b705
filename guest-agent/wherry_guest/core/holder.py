"""The process that keeps a user namespace until somebody else has a descriptor of it.

Rules: it does nothing; it ends when its leash (a pipe) is let go, also by its maker's death.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

_os: Final[Any] = os  # pipe2 exists on POSIX only; mypy checks all platforms


class Calls(Protocol):
    """What it needs of `core.syscalls.Kernel`, which has it for a method."""

    def clone(self, flags: int, cgroup: int | None) -> int: ...

    def readlink(self, path: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Holder:
    """`pid` here, `number` in the /proc that is mounted here, and the leash."""

    pid: int
    number: int
    leash: int


def hold(kernel: Calls, clone_flags: int) -> Holder:
    """A child in the new namespaces of `clone_flags`; OSError."""
    number_reader, number_writer = _os.pipe2(_os.O_CLOEXEC)
    end_reader, leash = _os.pipe2(_os.O_CLOEXEC)
    pid = kernel.clone(clone_flags, None)
    if pid == 0:
        os.close(leash)
        _hold(kernel, number_writer, end_reader)
    os.close(number_writer)
    os.close(end_reader)
    number = int(os.read(number_reader, 32) or 0)
    os.close(number_reader)
    holder = Holder(pid, number, leash)
    if number <= 0:
        let_go(holder)
        raise OSError(-number or errno.ESRCH, os.strerror(-number or errno.ESRCH), "/proc/self")
    return holder


def _hold(kernel: Calls, writer: int, end: int) -> NoReturn:
    """Say the number (an errno, negative, when it cannot be had) and wait for the end."""
    try:
        # /proc may be of another pid namespace than ours: only it knows the number
        said = kernel.readlink("/proc/self")
    except OSError as error:
        said = str(-(error.errno or errno.EIO))
    os.write(writer, said.encode())
    os.read(end, 1)
    os._exit(0)


def let_go(holder: Holder) -> None:
    """End the holder and reap it."""
    os.close(holder.leash)
    os.waitpid(holder.pid, 0)
