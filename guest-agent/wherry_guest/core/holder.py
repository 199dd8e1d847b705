"""The process that keeps a user namespace until somebody else has a descriptor of it.

Rules: it does nothing; it ends when its leash (a pipe) is let go, also by its maker's death.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from wherry_guest.core.syscalls import Kernel

_os: Final[Any] = os  # pipe2 exists on POSIX only; mypy checks all platforms


@dataclass(frozen=True, slots=True)
class Holder:
    """`pid` here, `number` in the /proc that is mounted here, and the leash."""

    pid: int
    number: int
    leash: int


def hold(kernel: Kernel, clone_flags: int) -> Holder:
    """A child in the new namespaces of `clone_flags`; OSError."""
    number_reader, number_writer = _os.pipe2(_os.O_CLOEXEC)
    end_reader, leash = _os.pipe2(_os.O_CLOEXEC)
    pid = kernel.clone(clone_flags, None)
    if pid == 0:
        os.close(leash)
        # /proc may be of another pid namespace than ours: only it knows the number
        os.write(number_writer, kernel.readlink("/proc/self").encode())
        os.read(end_reader, 1)
        os._exit(0)
    os.close(number_writer)
    os.close(end_reader)
    number = os.read(number_reader, 32)
    os.close(number_reader)
    holder = Holder(pid, int(number or 0), leash)
    if not number:
        let_go(holder)
        raise OSError(errno.ENOENT, "readlink", "/proc/self")
    return holder


def let_go(holder: Holder) -> None:
    """End the holder and reap it."""
    os.close(holder.leash)
    os.waitpid(holder.pid, 0)
