"""One process at a time: an exclusive lock on a file, freed by the kernel when its holder dies.

The file stays when the lock is released: removing it would let two processes hold locks on two
files of the same name. It holds the last holder's pid, for people.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wherry.errors import Conflict, StorageError
from wherry.osutil.files import disk_hint, has_no_room

_POLL_SECONDS = 0.02
_WINDOWS_LOCK_OFFSET = 1 << 30
"""Far behind the pid: Windows' byte-range locks are mandatory and would hide it from readers."""


class LockHeld(Conflict):
    """Another process has the lock. `holder` is its pid, 0 when unknown."""

    def __init__(self, message: str, *, holder: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.holder = holder


@contextmanager
def lock_file(path: Path, *, timeout: float | None = None, look: bool = False) -> Iterator[None]:
    """Hold the lock `path` (made when missing) while the block runs.

    Two holders in one process exclude each other too. Blocks the thread while it waits.

    Args:
        timeout: seconds to wait for another holder; 0: do not wait; None: as long as it takes.
        look: only to see who holds it: the file must be there, and is not written to.

    Raises:
        LockHeld: it was still held after `timeout`.
        StorageError: the file cannot be made or written to.
    """
    try:
        flags = os.O_RDONLY if look else os.O_RDWR | os.O_CREAT
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o600)
    except OSError as error:
        message = f"cannot lock {path}: {error.strerror}"
        raise StorageError(message, hint=disk_hint(error)) from error
    try:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not _try_lock(descriptor):
            if deadline is not None and time.monotonic() >= deadline:
                holder = _holder(descriptor)
                raise LockHeld(
                    f"{path} is locked by process {holder or 'unknown'}",
                    holder=holder,
                    hint="wait until it has finished, or end it",
                )
            time.sleep(_POLL_SECONDS)
        if not look:
            _sign(descriptor)
        yield
    finally:
        os.close(descriptor)  # releases the lock on every system


def _sign(descriptor: int) -> None:
    """Write our pid. On a full disk the lock is as good without: `_holder` knows nobody then."""
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        os.write(descriptor, b"%d\n" % os.getpid())
    except OSError as error:
        if not has_no_room(error):
            raise


def _holder(descriptor: int) -> int:
    os.lseek(descriptor, 0, os.SEEK_SET)
    text = os.read(descriptor, 32).strip()
    return int(text) if text.isdigit() else 0


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, _WINDOWS_LOCK_OFFSET, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:  # EACCES: held
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
