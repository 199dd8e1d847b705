"""What a container changed: its upper directory, compared with the layers below it.

Rules: only the upper directory is walked, the layers are looked up (through one read-only mount of
all of them, where the kernel has merged them already); no name is followed as a link; the working
directory is the parent of the entry that was just yielded, so that a consumer may open it by its
bare name. Runs in a process of its own: it changes directories and blocks.

The answers are Docker's (its comparison of two trees): a directory whose contents changed is a
change, one that was merely copied up is none; what a directory lost with itself is not told
one by one. Unlike Docker's, extended attributes count, not only capabilities.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

ADDED: Final = b"A"
CHANGED: Final = b"C"
DELETED: Final = b"D"

PLACEHOLDERS: Final = frozenset(
    (
        b"dev",
        b"dev/console",
        b"dev/mqueue",
        b"dev/pts",
        b"dev/shm",
        b"etc",
        b"etc/hostname",
        b"etc/hosts",
        b"etc/resolv.conf",
        b"proc",
        b"sys",
    )
)
"""What is made in an upper directory so that something can be mounted on it, while it stays empty:
not the container's doing. (Docker keeps these in a layer of their own, the init layer.)"""

PATH_BYTES: Final = 4096
"""PATH_MAX, uapi/linux/limits.h: what is deeper cannot be named, and no tar could be unpacked."""

_PRIVATE: Final = "trusted.overlay."
"""overlayfs's own attributes, Documentation/filesystems/overlayfs.rst."""

_OPAQUE: Final = "trusted.overlay.opaque"

# Names of the standard library that exist on Linux only; mypy checks this file for all platforms.
_os: Final[Any] = os


class DifferenceError(Exception):
    """The tree cannot be told: the message says why, in one line."""


@dataclass(slots=True)
class Change:
    """One path that differs.

    Attributes:
        kind: ADDED, CHANGED or DELETED.
        path: from the root, without a leading slash; b"" is the root itself.
        status: of the new entry; None for DELETED.
        xattrs: (name, value), sorted, without overlayfs's own.
        opaque: a directory that hides the one below it (told only with `for_layer`).
    """

    kind: bytes
    path: bytes
    status: os.stat_result | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    opaque: bool = False

    @property
    def name(self) -> bytes:
        """The last part of the path."""
        return self.path.rpartition(b"/")[2]


class _Directory:
    """A directory that is being walked.

    Attributes:
        upper, lower: open descriptors; lower is -1 where there is nothing to compare with.
        hidden: an opaque directory, or in one: what is below does not shine through.
        pending: the directory's own change, not told yet.
    """

    __slots__ = ("hidden", "lower", "names", "path", "pending", "upper")

    def __init__(
        self, path: bytes, upper: int, lower: int, hidden: bool, pending: Change | None
    ) -> None:
        self.path = path
        self.upper = upper
        self.lower = lower
        self.hidden = hidden
        self.pending = pending
        names = set(_names(upper))
        if hidden and lower >= 0:
            names |= set(_names(lower))
        self.names = iter(sorted(names))

    def close(self) -> None:
        os.close(self.upper)
        if self.lower >= 0:
            os.close(self.lower)


def differences(
    upper: bytes,
    lower: bytes | None,
    *,
    for_layer: bool = False,
    placeholders: frozenset[bytes] = PLACEHOLDERS,
) -> Iterator[Change]:
    """The changes, a directory before what is in it, names in the order of their bytes.

    Args:
        upper: the upper directory, or any tree.
        lower: where all layers below it are mounted; None: there are none, all is new.
        for_layer: what a layer needs rather than what people want to know: also what was copied up
            and looks as before, and opaque directories as such instead of what they hide.

    Raises:
        DifferenceError: a path is too long. OSError: as the file system's.
    """
    return _Walk(for_layer, placeholders).walk(upper, lower)


class _Walk:
    def __init__(self, for_layer: bool, placeholders: frozenset[bytes]) -> None:
        self._for_layer = for_layer
        self._placeholders = placeholders
        self._stack: list[_Directory] = []

    def walk(self, upper: bytes, lower: bytes | None) -> Iterator[Change]:
        upper_fd = _open_directory(upper)
        lower_fd = -1 if lower is None else _open_directory(lower)
        root = _Directory(b"", upper_fd, lower_fd, False, None)
        if self._for_layer and _root_differs(upper_fd, lower_fd):
            yield Change(CHANGED, b"", os.fstat(upper_fd))
        self._enter(root)
        while self._stack:
            directory = self._stack[-1]
            name = next(directory.names, None)
            if name is None:
                self._leave()
                continue
            for change in self._entry(directory, name):
                yield from self._with_parents(change)

    def _enter(self, directory: _Directory) -> None:
        self._stack.append(directory)
        _os.fchdir(directory.upper)

    def _leave(self) -> None:
        self._stack.pop().close()
        if self._stack:
            _os.fchdir(self._stack[-1].upper)

    def _with_parents(self, change: Change) -> Iterator[Change]:
        for directory in self._stack:
            if directory.pending is not None:
                yield directory.pending
                directory.pending = None
        yield change

    def _entry(self, directory: _Directory, name: bytes) -> Iterator[Change]:
        path = b"%s/%s" % (directory.path, name) if directory.path else name
        if len(path) > PATH_BYTES:
            raise DifferenceError(f"a path is longer than {PATH_BYTES} bytes: {_shown(path)}")
        below = _lstat(name, directory.lower) if directory.lower >= 0 else None
        status = _lstat(name, None)
        if status is None:  # hidden by the opaque directory, or deleted by a whiteout
            if below is not None and not (self._for_layer and directory.hidden):
                yield Change(DELETED, path)
        elif stat.S_ISDIR(status.st_mode):
            yield from self._directory(directory, name, path, status, below)
        else:
            xattrs = read_xattrs(name)
            if below is None:
                if path not in self._placeholders or not _is_empty_file(status):
                    yield Change(ADDED, path, status, xattrs)
            elif self._for_layer or _differ(status, below, xattrs, name, directory.lower):
                yield Change(CHANGED, path, status, xattrs)

    def _directory(
        self,
        parent: _Directory,
        name: bytes,
        path: bytes,
        status: os.stat_result,
        below: os.stat_result | None,
    ) -> Iterator[Change]:
        over = below is not None and stat.S_ISDIR(below.st_mode)
        xattrs = read_xattrs(name)
        opaque = over and not parent.hidden and _is_opaque(name)
        change = Change(CHANGED if below else ADDED, path, status, xattrs)
        change.opaque = opaque and self._for_layer
        if below is None:
            at_once = path not in self._placeholders
        else:
            differs = not over or _differ(status, below, xattrs, name, parent.lower)
            at_once = differs or change.opaque
        if at_once:
            yield change
        try:
            upper = _open_directory(name)
        except (FileNotFoundError, NotADirectoryError):
            return  # a container that was not paused has put something else there
        lower = _open_directory(name, parent.lower) if over else -1
        hidden = opaque or parent.hidden
        self._enter(_Directory(path, upper, lower, hidden, None if at_once else change))


def read_xattrs(name: bytes | str) -> tuple[tuple[bytes, bytes], ...]:
    """The extended attributes of what `name` is itself, sorted, without overlayfs's own."""
    try:
        names: list[str] = _os.listxattr(name, follow_symlinks=False)
    except OSError:  # ENOTSUP: a file system that has none
        return ()
    return tuple(
        (os.fsencode(key), _os.getxattr(name, key, follow_symlinks=False))
        for key in sorted(names)
        if not key.startswith(_PRIVATE)
    )


def device_number(status: Any) -> int:
    """`st_rdev` of a device (0 for other files), which not every system's stat has."""
    number: int = status.st_rdev
    return number


def _open_directory(name: bytes, parent: int | None = None) -> int:
    flags = os.O_RDONLY | _os.O_DIRECTORY | _os.O_NOFOLLOW
    return os.open(name, flags, dir_fd=parent)


def _names(fd: int) -> list[bytes]:
    with os.scandir(fd) as entries:
        return [os.fsencode(entry.name) for entry in entries]


def _lstat(name: bytes, directory: int | None) -> os.stat_result | None:
    """None when there is no such file, or it is a whiteout: a 0/0 character device."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISCHR(status.st_mode) and not device_number(status):
        return None
    return status


def _is_opaque(name: bytes) -> bool:
    try:
        value: bytes = _os.getxattr(name, _OPAQUE, follow_symlinks=False)
    except OSError:
        return False
    return value == b"y"


def _is_empty_file(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and not status.st_size


def _differ(
    new: os.stat_result,
    old: os.stat_result,
    xattrs: tuple[tuple[bytes, bytes], ...],
    name: bytes,
    lower: int,
) -> bool:
    if (new.st_mode, new.st_uid, new.st_gid) != (old.st_mode, old.st_uid, old.st_gid):
        return True
    if not stat.S_ISDIR(new.st_mode) and (
        new.st_size != old.st_size
        or device_number(new) != device_number(old)
        or not _same_time(new.st_mtime_ns, old.st_mtime_ns)
    ):
        return True
    return xattrs != read_xattrs(b"/proc/self/fd/%d/%s" % (lower, name))


def _same_time(one: int, other: int) -> bool:
    """Times that came through a tar have no fraction of a second, which then says nothing."""
    if one == other:
        return True
    seconds, rest = divmod(one, 1_000_000_000)
    other_seconds, other_rest = divmod(other, 1_000_000_000)
    return seconds == other_seconds and not (rest and other_rest)


def _root_differs(upper: int, lower: int) -> bool:
    new = os.fstat(upper)
    if lower < 0:
        return (new.st_mode & 0o7777, new.st_uid, new.st_gid) != (0o755, 0, 0)
    old = os.fstat(lower)
    return (new.st_mode, new.st_uid, new.st_gid) != (old.st_mode, old.st_uid, old.st_gid)


def _shown(path: bytes) -> str:
    text = path.decode("utf-8", "backslashreplace")
    return f"{text[:60]}…{text[-30:]}"
