"""Locks on disk: which of several is the newest that fits, and one that appears whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import LockError
from .lock import Lock, format_lock, parse_lock


def read_locks(arch: str, files: Iterable[Path]) -> Iterator[Lock]:
    """Those of the files that exist.

    Raises:
        LockError: one is malformed, or for another architecture.
    """
    for file in files:
        if file.exists():
            lock = parse_lock(file.read_text(encoding="utf-8", errors="replace"), str(file))
            if lock.architecture != arch:
                raise LockError(f"{file} is a lock for {lock.architecture}")
            yield lock


def newest_lock(arch: str, files: Iterable[Path], roots: tuple[str, ...]) -> Lock | None:
    """The newest of the files' locks that was made for exactly these names. Raises LockError."""
    fitting = [lock for lock in read_locks(arch, files) if lock.roots == roots]
    return max(fitting, key=lambda lock: lock.timestamp, default=None)


def write_lock(path: Path, lock: Lock) -> None:
    """Replace a lock: a reader sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".lock-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(format_lock(lock).encode())
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
