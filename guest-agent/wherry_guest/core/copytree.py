"""Copying a directory's contents into another one: what an image has on a volume's path.

Rules: runs in the container's forked child, whose root is the container's already; walks by
descriptors and follows no link, since another container may be writing to the volume meanwhile;
never recurses (trees are an image's, nested as deep as it likes); imports nothing.

What is kept is what an image can say: owners, modes, times, links, device nodes, attributes.
"""

from __future__ import annotations

import os
import stat
from typing import Any, Final

_PIECE: Final = 1 << 26
_PATH_BYTES: Final = 4096  # PATH_MAX, uapi/linux/limits.h

# Names of the standard library that exist on Linux only; mypy checks this file for all platforms.
_os: Final[Any] = os

_READ: Final = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_DIRECTORY: Final = _READ | getattr(os, "O_DIRECTORY", 0)
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)


def copy_contents(source: int, target: int) -> bool:
    """Copy what is in `source` into `target`, and `source`'s own owner, mode and times.

    Args:
        source, target: open directories, `target` without `O_PATH`; they stay open.

    Returns:
        False when `target` is not empty: nothing was done.

    Raises:
        OSError: of the first entry that could not be read or written; what is there stays.
    """
    if os.listdir(target):
        return False
    _Copy(target).run(source)
    return True


class _Level:
    """A directory that is being copied: its two descriptors and the names that are left."""

    __slots__ = ("names", "path", "source", "target")

    def __init__(self, source: int, target: int, path: str) -> None:
        self.source = source
        self.target = target
        self.path = path
        self.names = iter(sorted(os.listdir(source)))


class _Copy:
    def __init__(self, root: int) -> None:
        self._root = root
        self._links: dict[tuple[int, int], str] = {}
        self._stack: list[_Level] = []

    def run(self, source: int) -> None:
        self._stack.append(_Level(os.dup(source), os.dup(self._root), ""))
        try:
            while self._stack:
                level = self._stack[-1]
                name = next(level.names, None)
                if name is None:
                    self._leave()
                else:
                    self._entry(level, name)
        finally:
            for level in self._stack:
                os.close(level.source)
                os.close(level.target)

    def _leave(self) -> None:
        level = self._stack.pop()
        status = os.fstat(level.source)
        _copy_xattrs(level.source, level.target)
        _os.fchown(level.target, status.st_uid, status.st_gid)
        _os.fchmod(level.target, stat.S_IMODE(status.st_mode))
        os.utime(level.target, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.close(level.source)
        os.close(level.target)

    def _entry(self, level: _Level, name: str) -> None:
        status: Any = os.stat(name, dir_fd=level.source, follow_symlinks=False)
        path = f"{level.path}/{name}" if level.path else name
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=level.target)
            source = os.open(name, _DIRECTORY, dir_fd=level.source)
            target = os.open(name, _DIRECTORY, dir_fd=level.target)
            self._stack.append(_Level(source, target, path))
            return
        if status.st_nlink > 1 and self._linked(status, path, level, name):
            return
        if kind == stat.S_IFREG:
            _copy_file(level, name, status)
            return
        if kind == stat.S_IFLNK:
            link = os.readlink(name, dir_fd=level.source)
            os.symlink(link, name, dir_fd=level.target)
        elif kind == stat.S_IFSOCK:
            return  # nobody listens any more
        else:
            _os.mknod(name, status.st_mode, status.st_rdev, dir_fd=level.target)
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=level.target)
        _own(level, name, status)

    def _linked(self, status: Any, path: str, level: _Level, name: str) -> bool:
        """Make `name` a link to the copy that there is of this file; False for the first name."""
        key = (status.st_dev, status.st_ino)
        first = self._links.setdefault(key, path)
        if first is path or len(os.fsencode(first)) >= _PATH_BYTES:
            return False
        os.link(first, name, src_dir_fd=self._root, dst_dir_fd=level.target, follow_symlinks=False)
        return True


def _copy_file(level: _Level, name: str, status: Any) -> None:
    source = os.open(name, _READ, dir_fd=level.source)
    try:
        target = os.open(name, _CREATE, 0o600, dir_fd=level.target)
        try:
            while _os.sendfile(target, source, None, _PIECE):
                pass
            _os.fchown(target, status.st_uid, status.st_gid)
            _copy_xattrs(source, target)  # after chown, which takes capabilities away
            _os.fchmod(target, stat.S_IMODE(status.st_mode))
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(target)
    finally:
        os.close(source)


def _copy_xattrs(source: int, target: int) -> None:
    for key in _os.listxattr(source):
        _os.setxattr(target, key, _os.getxattr(source, key))


def _own(level: _Level, name: str, status: Any) -> None:
    _os.chown(name, status.st_uid, status.st_gid, dir_fd=level.target, follow_symlinks=False)
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=level.target, follow_symlinks=False)
