"""A container's changes, or its whole tree, as a tar: what `commit` and `export` read.

Rules: big writes; contents go from file to pipe in the kernel; nothing is held in memory but the
names of files with several links. An entry's contents are as long as its header says: what shrinks
meanwhile is filled up with zeros, what grows is cut. Runs in a process of its own, and blocks.

A layer's whiteouts are OCI's (image-spec, layer.md): `.wh.NAME` for what was deleted, and
`.wh..wh..opq` in a directory that hides the one below it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from typing import Any, Final

from wherry_guest import tarformat
from wherry_guest.agent.difference import DELETED, Change, DifferenceError, device_number

WHITEOUT: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"
_WHITEOUT_MODE: Final = 0o600

BUFFER_BYTES: Final = 256 * 1024
_SMALL: Final = 64 * 1024
"""Files up to this size go through the buffer: several fit into one write."""

_SENDFILE_BYTES: Final = 1 << 30

_REPLACED: Final = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EACCES)
"""open(2): it is gone, or now a link, a FIFO or socket, or a device where none may be opened."""

_KINDS: Final = {
    stat.S_IFREG: tarformat.REGULAR,
    stat.S_IFLNK: tarformat.SYMLINK,
    stat.S_IFCHR: tarformat.CHARACTER,
    stat.S_IFBLK: tarformat.BLOCK_DEVICE,
    stat.S_IFDIR: tarformat.DIRECTORY,
    stat.S_IFIFO: tarformat.FIFO,
}
"""Sockets are left out: no tar can hold one, and it would be nobody's."""

# Names of the standard library that exist on Linux only; mypy checks this file for all platforms.
_os: Final[Any] = os


def write_tar(changes: Iterable[Change], out: int, *, whiteouts: bool = True) -> None:
    """Write the changes to the descriptor `out` (blocking).

    Args:
        changes: of `differences`, consumed one by one: contents are read by bare name.
        whiteouts: the tar is read as a layer, in which some names mean something.

    Raises:
        DifferenceError: a file has a name that would be a whiteout. OSError: reading, writing.
    """
    writer = _Writer(out, whiteouts)
    for change in changes:
        writer.add(change)
    writer.finish()


class _Writer:
    def __init__(self, out: int, whiteouts: bool) -> None:
        self._out = out
        self._whiteouts = whiteouts
        self._buffer = bytearray()
        self._links: dict[tuple[int, int], bytes] = {}

    def add(self, change: Change) -> None:
        status = change.status
        if change.kind == DELETED or status is None:
            directory, slash, name = change.path.rpartition(b"/")
            self._marker(directory + slash + WHITEOUT + name)
            return
        if self._whiteouts and change.name.startswith(WHITEOUT):
            raise DifferenceError(
                f"/{os.fsdecode(change.path)}: a layer cannot hold a name that begins with .wh."
            )
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind == tarformat.REGULAR:
            self._regular(change, status)
        elif kind == tarformat.DIRECTORY:
            path = change.path or b"."
            self._header(path + b"/", kind, change, status)
            if change.opaque:
                self._marker(path + b"/" + OPAQUE)
        elif kind is not None:
            self._special(kind, change, status)

    def finish(self) -> None:
        self._buffer += tarformat.END
        self._flush()

    def _marker(self, name: bytes) -> None:
        self._put(tarformat.header(name, tarformat.REGULAR, _WHITEOUT_MODE))

    def _regular(self, change: Change, status: os.stat_result) -> None:
        if self._is_link(change, status):
            return
        # A container that was not paused may have put something else there: it is not waited for.
        flags = os.O_RDONLY | _os.O_NOFOLLOW | _os.O_CLOEXEC | _os.O_NONBLOCK
        try:
            fd = os.open(change.name, flags)
        except OSError as error:
            if error.errno in _REPLACED:
                return
            raise
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return
            size = status.st_size
            self._header(change.path, tarformat.REGULAR, change, status, size)
            if size <= _SMALL:
                data = os.read(fd, size) if size else b""
                self._put(data[:size] + bytes(size - len(data)) + tarformat.padding(size))
            else:
                self._flush()
                self._copy(fd, size)
        finally:
            os.close(fd)

    def _special(self, kind: bytes, change: Change, status: os.stat_result) -> None:
        if self._is_link(change, status):
            return
        link, device = b"", (0, 0)
        if kind == tarformat.SYMLINK:
            link = _os.readlink(change.name)
        elif kind != tarformat.FIFO:
            number = device_number(status)
            device = _os.major(number), _os.minor(number)
        self._header(change.path, kind, change, status, link=link, device=device)

    def _is_link(self, change: Change, status: os.stat_result) -> bool:
        """Write a file with several links as a link to its first name, from the second on."""
        if status.st_nlink < 2:
            return False
        key = (status.st_dev, status.st_ino)
        first = self._links.setdefault(key, change.path)
        if first is change.path:
            return False
        self._header(change.path, tarformat.HARD_LINK, change, status, link=first)
        return True

    def _header(
        self,
        name: bytes,
        kind: bytes,
        change: Change,
        status: os.stat_result,
        size: int = 0,
        link: bytes = b"",
        device: tuple[int, int] = (0, 0),
    ) -> None:
        xattrs = () if kind == tarformat.HARD_LINK else change.xattrs
        self._put(
            tarformat.header(
                name,
                kind,
                status.st_mode & 0o7777,
                status.st_uid,
                status.st_gid,
                size,
                status.st_mtime_ns // 1_000_000_000,
                link,
                device,
                xattrs,
            )
        )

    def _put(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        with memoryview(self._buffer) as view:
            written = 0
            while written < len(view):
                written += os.write(self._out, view[written:])
        self._buffer.clear()

    def _copy(self, fd: int, size: int) -> None:
        done = 0
        while done < size:
            count = _os.sendfile(self._out, fd, done, min(size - done, _SENDFILE_BYTES))
            if not count:
                break
            done += count
        while done < size:
            piece = bytes(min(size - done, BUFFER_BYTES))
            self._put(piece)
            done += len(piece)
        self._put(tarformat.padding(size))
