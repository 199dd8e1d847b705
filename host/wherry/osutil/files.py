"""Directories that are ours alone, and files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from wherry.errors import StorageError

_RETRY_SECONDS = 3.0
"""Windows refuses to replace or remove a file that a scanner, a reader or a process that is just
ending has open: a moment later it works."""

FULL_HINT = "the disk is full: make room on it, also with: wherry system prune"
DENIED_HINT = "it cannot be written to: wherry doctor checks owner, permissions and file system"


def private_directory(path: Path) -> Path:
    """Make `path` (and missing parents) a directory that only this user can enter; return it.

    One that exists must be a directory of ours and no symlink (a stranger may have put it into a
    shared temporary folder); looser permissions are tightened.

    Raises:
        StorageError: it is a symlink, no directory, another user's, or cannot be made.
    """
    try:
        _make(path)
        if sys.platform != "win32":
            _check_ours(path, path.lstat())
    except OSError as error:
        if (drive := missing_drive(path)) is not None:
            raise StorageError(
                f"cannot make the directory {path}: there is no drive {drive}",
                hint="connect it again, or set WHERRY_HOME to a directory of another drive",
            ) from error
        message = f"cannot make the directory {path}: {error.strerror}"
        raise StorageError(message, hint=disk_hint(error)) from error
    return path


def missing_drive(path: Path) -> str | None:
    """The drive or share of a path of Windows when it is gone; None where it is there."""
    root = Path(path.anchor)
    return None if not path.drive or root.exists() else path.drive.removeprefix("\\\\?\\")


def has_no_room(error: OSError) -> bool:
    """Whether the disk is full, or this user's share of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_refused(error: OSError) -> bool:
    """Whether nobody, or not this user, may write there."""
    return error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)


def disk_hint(error: OSError) -> str | None:
    """What a person can do about a file that could not be made or written; None: not known."""
    if has_no_room(error):
        return FULL_HINT
    if is_refused(error):
        return DENIED_HINT
    return None


def disk_error(error: OSError) -> StorageError:
    """What the operating system says about a file of ours, as the user's error."""
    place = f"{error.filename}: " if error.filename else ""
    return StorageError(f"{place}{error.strerror or error}", hint=disk_hint(error))


def atomic_write(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by a file with these bytes: after a crash it holds the old bytes or the new.

    Raises:
        OSError: as from open, write and rename; `path` is then untouched.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            sync_descriptor(file.fileno())
        temporary.chmod(mode)
        replace_file(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def replace_file(source: Path, target: Path) -> None:
    """Rename over `target`; on Windows again for a moment while a scanner or reader has it open.

    Raises:
        OSError: as from rename.
    """
    patiently(lambda: source.replace(target))


def patiently(work: Callable[[], object]) -> None:
    """Do `work`; on Windows again for a moment while somebody has a file of it open.

    Raises:
        OSError: as from `work`.
    """
    deadline = time.monotonic() + _RETRY_SECONDS
    while True:
        try:
            work()
            return
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def fsync_directory(path: Path) -> None:
    """Make renames in `path` durable. Windows cannot open directories and needs no help."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sync_descriptor(descriptor: int) -> None:
    """fsync that reaches the medium: macOS's stops at the drive's cache (fcntl(2), F_FULLFSYNC)."""
    if sys.platform == "darwin":
        import fcntl

        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError:
            pass  # network file systems do not know it; fsync is then the best there is
    os.fsync(descriptor)


def _make(path: Path) -> None:
    if path.parent != path and not path.parent.exists():
        _make(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


def _check_ours(path: Path, status: os.stat_result) -> None:
    if sys.platform == "win32":
        return
    if stat.S_ISLNK(status.st_mode):
        raise StorageError(f"{path} is a symbolic link", hint="remove it; Wherry wants a directory")
    if status.st_uid != os.geteuid():
        raise StorageError(
            f"{path} belongs to another user (uid {status.st_uid})",
            hint="remove it, or set WHERRY_HOME to a directory of your own",
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(0o700)
