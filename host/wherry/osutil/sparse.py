"""Big, mostly empty files: holes where nothing is written, copies without what is empty.

A copy shares its blocks with the original where the file system can, else it has only what is
written in it. POSIX file systems leave holes by themselves, Windows' only in files that are marked.
"""

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

_FSCTL_SET_SPARSE = 0x000900C4
_FILE_END_OF_FILE_INFO = 6
"""Windows, winioctl.h: what nobody writes takes no space from then on; minwinbase.h."""

_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)


def mark_sparse(descriptor: int) -> bool:
    """Let a file that was just made have holes; False where the file system cannot (FAT, some
    shares): there it is as large as it looks, and works all the same."""
    if sys.platform != "win32":
        return True
    import msvcrt

    return _allow_holes(ctypes.WinDLL("kernel32"), msvcrt.get_osfhandle(descriptor))


def lengthen(descriptor: int, size: int) -> None:
    """Give a file `size` bytes, the new ones a hole.

    Not by Python's truncate on Windows: the C runtime writes every zero there (_chsize_s).

    Raises:
        OSError: the disk is full, or the file cannot be as large.
    """
    if sys.platform != "win32":
        os.ftruncate(descriptor, size)
        return
    import msvcrt

    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    if not _set_end(kernel32, msvcrt.get_osfhandle(descriptor), size):
        raise ctypes.WinError(ctypes.get_last_error())


def _allow_holes(kernel32: Any, handle: int) -> bool:
    given = ctypes.c_uint32()
    return bool(
        kernel32.DeviceIoControl(
            *(ctypes.c_void_p(handle), _FSCTL_SET_SPARSE),
            *(None, 0, None, 0, ctypes.byref(given), None),
        )
    )


def _set_end(kernel32: Any, handle: int, size: int) -> bool:
    end = ctypes.c_int64(size)
    return bool(
        kernel32.SetFileInformationByHandle(
            *(ctypes.c_void_p(handle), _FILE_END_OF_FILE_INFO),
            *(ctypes.byref(end), ctypes.sizeof(end)),
        )
    )


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
    mark_sparse(written.fileno())
    lengthen(written.fileno(), total)
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
