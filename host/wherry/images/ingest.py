"""Work in progress on content: one worker per digest at a time, files that vanish unless kept.

A lock file (many digests share one: there are 4,096) keeps other threads and processes away from a
digest; the kernel frees it when its holder dies. Temporary files are named after the digest, so
that the next holder of the lock clears away what a killed one left.
"""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from wherry.images.registry import Stopped
from wherry.osutil import (
    LockHeld,
    fsync_directory,
    lock_file,
    private_directory,
    replace_file,
)

_LOOK_SECONDS = 0.5
_SPOOL = "spool-"
_STALE_SECONDS = 600.0
_PARTIAL = ".partial"


class Ingest:
    """The directory of unfinished files; on the same file system as what they become."""

    def __init__(self, root: Path) -> None:
        self._root = private_directory(root)
        self._locks = private_directory(root / "locks")

    @contextmanager
    def working_on(
        self,
        digest: str,
        *,
        stop: threading.Event | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> Iterator[None]:
        """Hold the lock of a digest; leftovers of a killed holder are removed.

        Args:
            stop: when set, waiting ends with `Stopped`.
            on_wait: called once when another worker has the lock.
        """
        hexadecimal = digest.removeprefix("sha256:")
        path = self._locks / f"{hexadecimal[:3]}.lock"
        patience = 0.0
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(lock_file(path, timeout=patience))
                    break
                except LockHeld:
                    if on_wait is not None and not patience:
                        on_wait()
                    patience = _LOOK_SECONDS
                if stop is not None and stop.is_set():
                    raise Stopped
            for leftover in self._root.glob(f"{hexadecimal}-*"):
                remove_file(leftover)
            yield

    @contextmanager
    def spool(self) -> Iterator[Path]:
        """A directory for what has no digest yet; gone at the end. Those of killed processes are
        removed first."""
        self.sweep()
        path = self._root / f"{_SPOOL}{secrets.token_hex(8)}"
        lock = self._locks / f"{path.name}.lock"
        try:
            with lock_file(lock, timeout=0):
                try:
                    yield private_directory(path)
                finally:
                    shutil.rmtree(path, ignore_errors=True)
        finally:
            remove_file(lock)

    def sweep(self) -> None:
        """Remove what killed processes left unfinished."""
        for path in self._root.glob(f"{_SPOOL}*"):
            lock = self._locks / f"{path.name}.lock"
            try:
                with lock_file(lock, timeout=0):
                    shutil.rmtree(path, ignore_errors=True)
            except LockHeld:
                continue  # its process is alive
            remove_file(lock)

    def sweep_digests(self) -> None:
        """Remove unfinished files whose digest nobody works on, and that are not quite new: small
        ones are written without their digest's lock."""
        newest = time.time() - _STALE_SECONDS
        for path in self._root.glob("*-*.*"):
            try:
                if path.stat().st_mtime > newest:
                    continue
                with lock_file(self._locks / f"{path.name[:3]}.lock", timeout=0):
                    remove_file(path)
            except (LockHeld, FileNotFoundError):
                continue  # somebody works on it, or has finished

    def partial(self, digest: str) -> Path:
        """The file of an unfinished download that may be gone on with."""
        return self._root / f"{digest.removeprefix('sha256:')}{_PARTIAL}"

    def sweep_partials(self, older_than: float) -> None:
        """Remove unfinished downloads that nobody has gone on with for so many seconds."""
        for path in self._root.glob(f"*{_PARTIAL}"):
            try:
                if time.time() - path.stat().st_mtime < older_than:
                    continue
                with lock_file(self._locks / f"{path.name[:3]}.lock", timeout=0):
                    remove_file(path)
            except (LockHeld, FileNotFoundError):
                continue

    @contextmanager
    def new_file(self, digest: str, kind: str) -> Iterator[Path]:
        """A name for a file about that digest; removed at the end, unless it was moved away."""
        hexadecimal = digest.removeprefix("sha256:")
        path = self._root / f"{hexadecimal}-{secrets.token_hex(4)}.{kind}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def move_into_place(source: Path, target: Path) -> None:
    """Rename a synced file and make the name durable."""
    replace_file(source, target)
    fsync_directory(target.parent)


def remove_file(path: Path) -> bool:
    """Remove a file; False when it is still open somewhere (Windows) and stays."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        return False
    return True
