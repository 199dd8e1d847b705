"""Making the files of an archive in a container: what `cp` does there.

Runs in a child of the agent whose root is the container's (`agent.rootview`). Rules: a name is
cleaned and must stay below the directory that is unpacked to; the last part of a name is never
followed as a link, the others are, within the container's root; what stands in the way of an entry
is removed, a directory is merged with one. These are Docker's rules (moby: pkg/archive, Unpack).
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Callable
from typing import Any, Final

from wherry_guest import entries
from wherry_guest.core.syscalls import O_PATH, RESOLVE_NO_MAGICLINKS, Kernel
from wherry_guest.entries import Entry

_PIECE: Final = 256 * 1024
_DIRECTORY_MODE: Final = 0o755
_REMOVE_TRIES: Final = 1000
"""So many directories may turn out to be filled or emptied by others while they are removed."""

# Names of the standard library that exist on Linux only; mypy checks this file for all platforms.
_os: Final[Any] = os

_O_DIRECTORY: Final = getattr(os, "O_DIRECTORY", 0)
_O_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _O_NOFOLLOW
_NODES: Final = {
    entries.CHARACTER: stat.S_IFCHR,
    entries.BLOCK: stat.S_IFBLK,
    entries.FIFO: stat.S_IFIFO,
}

Read = Callable[[int], bytes]
"""Exactly so many bytes of what comes; raises when they do not come."""


class UnpackError(Exception):
    """An entry that cannot be made; the message names it."""


class Unpacker:
    """Makes entries below the open directory `target`.

    Args:
        read: where the entries come from.
        keep_kind: a directory is not replaced by another kind of file, nor the other way round.
        owner: (uid, gid) of everything; None: as the entries say.
    """

    def __init__(
        self,
        kernel: Kernel,
        target: int,
        read: Read,
        *,
        keep_kind: bool,
        owner: tuple[int, int] | None,
    ) -> None:
        self._kernel = kernel
        self._target = target
        self._read = read
        self._keep_kind = keep_kind
        self._owner = owner
        self._directories: list[tuple[bytes, int]] = []

    def run(self) -> int:
        """Make all of them; how many there were.

        Raises:
            UnpackError: one cannot be made, or they end too early. What was made before stays.
        """
        os.umask(0)
        count = 0
        while length := int.from_bytes(self._read(entries.LENGTH_BYTES), "big"):
            if length > entries.MAX_RECORD:
                raise UnpackError("a record is too long")
            try:
                entry = entries.decode(self._read(length))
            except ValueError as error:
                raise UnpackError(str(error)) from error
            try:
                self._make(entry)
            except OSError as error:
                raise UnpackError(f"{_shown(entry.name)}: {error.strerror}") from error
            count += 1
        self._set_directory_times()
        return count

    def _make(self, entry: Entry) -> None:
        name = _clean(entry.name)
        if name == b".":
            return  # where it is unpacked to is there already, and is not changed
        directory, _, last = name.rpartition(b"/")
        parent = self._open_parent(directory)
        try:
            there = self._clear(parent, last, entry)
            if entry.kind == entries.FILE:
                self._file(parent, last, entry)
            else:
                self._other(parent, last, entry, there)
        finally:
            os.close(parent)
        if entry.kind == entries.DIRECTORY:
            self._directories.append((name, entry.mtime_ns))

    def _open_parent(self, path: bytes) -> int:
        """Open a directory below the target, making what is missing of it."""
        try:
            return self._open(path or b".")
        except FileNotFoundError:
            pass
        parts = path.split(b"/")
        here = self._open(b".")
        for depth in range(1, len(parts) + 1):
            try:
                below = self._open(b"/".join(parts[:depth]))
            except FileNotFoundError:
                os.mkdir(parts[depth - 1], _DIRECTORY_MODE, dir_fd=here)
                flags = O_PATH | _O_DIRECTORY | _O_NOFOLLOW
                below = os.open(parts[depth - 1], flags, dir_fd=here)
            os.close(here)
            here = below
        return here

    def _open(self, path: bytes) -> int:
        flags = O_PATH | _O_DIRECTORY
        return self._kernel.openat2(self._target, path, flags, RESOLVE_NO_MAGICLINKS)

    def _clear(self, parent: int, name: bytes, entry: Entry) -> bool:
        """Remove what is in the way; True when a directory is there that is merged with."""
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        is_directory, wanted = stat.S_ISDIR(status.st_mode), entry.kind == entries.DIRECTORY
        if is_directory and wanted:
            return True
        if self._keep_kind and is_directory:
            raise UnpackError(f"cannot overwrite directory {_shown(name)} with non-directory")
        if self._keep_kind and wanted:
            raise UnpackError(f"cannot overwrite non-directory {_shown(name)} with directory")
        try:
            remove_tree(parent, name)
        except OSError as error:
            if error.errno != errno.EBUSY or entry.kind != entries.FILE or is_directory:
                raise
        return False

    def _file(self, parent: int, name: bytes, entry: Entry) -> None:
        try:
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent)
        except FileExistsError:  # something is mounted there (/etc/hosts): it cannot be replaced
            fd = os.open(name, os.O_WRONLY | os.O_TRUNC | _O_NOFOLLOW, dir_fd=parent)
        try:
            for offset, length in entry.segments or ((0, entry.size),):
                os.lseek(fd, offset, os.SEEK_SET)
                while length:
                    data = self._read(min(length, _PIECE))
                    _write_all(fd, data)
                    length -= len(data)
            if entry.segments is not None:
                os.truncate(fd, entry.size)
            uid, gid = self._owner or (entry.uid, entry.gid)
            _os.fchown(fd, uid, gid)
            _os.fchmod(fd, entry.mode)
            for key, value in entry.xattrs:
                _set_xattr(fd, key, value)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _other(self, parent: int, name: bytes, entry: Entry, there: bool) -> None:
        if entry.kind == entries.LINK:
            self._hard_link(parent, name, entry)
            return
        if entry.kind == entries.SYMLINK:
            os.symlink(entry.link, name, dir_fd=parent)
        elif entry.kind == entries.DIRECTORY:
            if not there:
                os.mkdir(name, 0o700, dir_fd=parent)
        else:
            number = _os.makedev(*entry.device)
            _os.mknod(name, _NODES[entry.kind] | entry.mode, number, dir_fd=parent)
        uid, gid = self._owner or (entry.uid, entry.gid)
        _os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        if entry.kind == entries.DIRECTORY:
            self._finish_directory(parent, name, entry)
        else:
            times = (entry.mtime_ns, entry.mtime_ns)
            os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)

    def _finish_directory(self, parent: int, name: bytes, entry: Entry) -> None:
        fd = os.open(name, os.O_RDONLY | _O_DIRECTORY | _O_NOFOLLOW, dir_fd=parent)
        try:
            _os.fchmod(fd, entry.mode)
            for key, value in entry.xattrs:
                _set_xattr(fd, key, value)
        finally:
            os.close(fd)

    def _hard_link(self, parent: int, name: bytes, entry: Entry) -> None:
        directory, _, last = _clean(entry.link).rpartition(b"/")
        source = self._open(directory or b".")
        try:
            os.link(last, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def _set_directory_times(self) -> None:
        """Last, and the deepest first: what is made in a directory changes its time."""
        for name, time_ns in reversed(self._directories):
            try:
                flags = os.O_RDONLY | _O_DIRECTORY
                fd = self._kernel.openat2(self._target, name, flags, RESOLVE_NO_MAGICLINKS)
            except OSError:
                continue  # the container has removed it meanwhile
            os.utime(fd, ns=(time_ns, time_ns))
            os.close(fd)


def remove_tree(parent: int, name: bytes) -> None:
    """Remove a file, or a directory with everything in it. Nothing recurses or follows links.

    Raises:
        OSError: ENOTEMPTY, when somebody goes on filling what is removed.
    """
    stack: list[tuple[int, bytes]] = [(parent, name)]
    patience = _REMOVE_TRIES
    try:
        while stack:
            directory, last = stack[-1]
            if not _removed(directory, last):
                patience -= _fill(stack, directory, last)
                if patience < 0:
                    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
                continue
            stack.pop()
            if directory != parent and (not stack or stack[-1][0] != directory):
                os.close(directory)
    finally:
        for directory in {directory for directory, _ in stack} - {parent}:
            os.close(directory)


def _removed(directory: int, name: bytes) -> bool:
    """False for a directory that is not empty."""
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        try:
            os.rmdir(name, dir_fd=directory)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            return False
    except FileNotFoundError:
        pass  # somebody else was quicker
    return True


def _fill(stack: list[tuple[int, bytes]], directory: int, name: bytes) -> int:
    """Put what is in the directory on the stack; 1 when it had been put there before, else 0."""
    below = os.open(name, os.O_RDONLY | _O_DIRECTORY | _O_NOFOLLOW, dir_fd=directory)
    with os.scandir(below) as found:
        inside = [(below, os.fsencode(entry.name)) for entry in found]
    if not inside:
        os.close(below)
        return 1
    stack += inside
    return 0


def _clean(name: bytes) -> bytes:
    """A relative path without `..`; b"." is the directory itself. UnpackError."""
    clean = posixpath.normpath(name.lstrip(b"/") or b".")
    if clean == b".." or clean.startswith(b"../"):
        raise UnpackError(f"{_shown(name)} is outside of the directory that is unpacked to")
    return clean


def _set_xattr(fd: int, name: bytes, value: bytes) -> None:
    """As Docker: what the file system cannot keep is left out; `trusted.` is the machine's own."""
    if name.startswith(b"trusted."):
        return
    try:
        _os.setxattr(fd, name, value)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EPERM):
            raise


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _shown(name: bytes) -> str:
    text = name.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 200 else f"{text[:120]}…{text[-60:]}")
