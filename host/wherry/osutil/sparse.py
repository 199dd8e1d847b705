"""Copying big, mostly empty files: shared with the original where the file system can, else only
what is written in it."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from wherry.errors import StorageError
from wherry.osutil.files import fsync_directory, sync_descriptor

_FICLONE = 0x40049409
"""_IOW(0x94, 9, int), linux/fs.h: btrfs, XFS and others share the blocks until one is written."""

_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)


def copy_sparse(
    source: Path, target: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Make `target`, which must not exist, a copy of `source`, holes included. It is on disk then.

    Args:
        progress: (bytes done, of how many).

    Raises:
        StorageError: the disk is full, or one of them cannot be used; there is no target then.
    """
    try:
        if not _cloned_by_name(source, target):
            with source.open("rb") as read, target.open("xb") as written:
                try:
                    if not _cloned(read, written):
                        _copy(read, written, progress)
                    sync_descriptor(written.fileno())
                except BaseException:
                    written.close()
                    target.unlink(missing_ok=True)
                    raise
        target.chmod(0o600)
        fsync_directory(target.parent)
    except OSError as error:
        raise StorageError(f"cannot copy {source} to {target}: {error.strerror}") from error


def link_or_copy(source: Path, target: Path) -> None:
    """Another name for a file that nobody changes; a copy where that is not possible.

    Raises:
        OSError: there is no `source`, or the disk is full.
    """
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _cloned_by_name(source: Path, target: Path) -> bool:
    """macOS: clonefile(2), on APFS."""
    if sys.platform != "darwin":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.clonefile(os.fsencode(source), os.fsencode(target), 0) == 0)


def _cloned(read: BinaryIO, written: BinaryIO) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        fcntl.ioctl(written.fileno(), _FICLONE, read.fileno())
    except OSError:
        return False  # another file system, or one that cannot
    return True


def _copy(read: BinaryIO, written: BinaryIO, progress: Callable[[int, int], None]) -> None:
    total = os.fstat(read.fileno()).st_size
    written.truncate(total)
    for start, end in _extents(read.fileno(), total):
        position = start
        while position < end:
            read.seek(position)
            data = read.read(min(_CHUNK, end - position))
            if not data:
                raise OSError(0, "it became shorter while it was copied")
            if data != _ZEROS[: len(data)]:
                written.seek(position)
                written.write(data)
            position += len(data)
            progress(position, total)
    written.flush()
    progress(total, total)


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where data is: (start, end). The whole file where the system cannot tell."""
    system: Any = os
    if not hasattr(os, "SEEK_DATA"):
        yield 0, size
        return
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, system.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        position = os.lseek(descriptor, start, system.SEEK_HOLE)
        yield start, position
