"""Files of this computer as a tar, and a container's tar as files of this computer.

Rules: nothing is held in memory but the names of files with several links; *a container's archive
is hostile*: no name leads out of where it is unpacked, no link that it brought is followed, no
device is made, no set-uid bit is set, and owners stay whoever unpacks it. A link is known by its
inode, not by its name: the file system may have other spellings for it. No file replaces one that
is there under another spelling.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from wherry.cli.copyplan import CONTENTS, renamed
from wherry.errors import InvalidInput, StorageError
from wherry.osutil.longpaths import extended, plain_text
from wherry.osutil.spellings import Spellings
from wherry.osutil.winnames import trouble

_BLOCK = 512
_READ_SIZE = 1 << 20
_END = bytes(2 * _BLOCK)
_PERMISSIONS = 0o777 | stat.S_ISVTX

_ERROR_PRIVILEGE_NOT_HELD = 1314
"""Windows, winerror.h: it lets not everybody make links."""

_os: Any = os  # names that exist on POSIX only; mypy checks all platforms


def pack(source: Path, name: str) -> Iterator[bytes]:
    """A tar of a file, or of a directory with everything in it, whose top is called `name`.

    Links are kept as such. With CONTENTS as the name the top is `./`.

    Raises:
        StorageError: a file cannot be read.
    """
    links: dict[tuple[int, int], str] = {}
    stack = [(extended(source), name)]
    while stack:
        path, name = stack.pop()
        try:
            status = path.lstat()
            info = _info(path, name, status, links)
            if info is None:
                continue
            yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
            if info.isreg():
                yield from _contents(path, info.size)
            if info.isdir():
                below = sorted(path.iterdir(), reverse=True)
                stack += [(entry, f"{name}/{entry.name}") for entry in below]
        except OSError as error:
            raise StorageError(f"cannot read {_shown(path)}: {error.strerror}") from error
    yield _END


def _info(
    path: Path, name: str, status: os.stat_result, links: dict[tuple[int, int], str]
) -> tarfile.TarInfo | None:
    """A header; None for what no archive can hold (sockets)."""
    kinds = {
        stat.S_IFREG: tarfile.REGTYPE,
        stat.S_IFDIR: tarfile.DIRTYPE,
        stat.S_IFLNK: tarfile.SYMTYPE,
        stat.S_IFIFO: tarfile.FIFOTYPE,
        stat.S_IFCHR: tarfile.CHRTYPE,
        stat.S_IFBLK: tarfile.BLKTYPE,
    }
    kind = kinds.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return None
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = 0o755 if sys.platform == "win32" else stat.S_IMODE(status.st_mode)
    info.uid, info.gid = status.st_uid, status.st_gid
    info.mtime = status.st_mtime
    if kind == tarfile.SYMTYPE:
        info.linkname = _shown(path.readlink()).replace(os.sep, "/")
    elif kind == tarfile.REGTYPE:
        first = name
        if status.st_nlink > 1:
            first = links.setdefault((status.st_dev, status.st_ino), name)
        if first == name:
            info.size = status.st_size
        else:
            info.type, info.linkname = tarfile.LNKTYPE, first
    elif kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        number = getattr(status, "st_rdev", 0)
        info.devmajor, info.devminor = _os.major(number), _os.minor(number)
    return info


def _contents(path: Path, size: int) -> Iterator[bytes]:
    """Exactly `size` bytes, whatever becomes of the file meanwhile, and the padding."""
    left = size
    with path.open("rb") as file:
        while left and (data := file.read(min(left, _READ_SIZE))):
            left -= len(data)
            yield data
    while left:
        yield bytes(min(left, _READ_SIZE))
        left -= min(left, _READ_SIZE)
    yield bytes(-size % _BLOCK)


def unpack(chunks: Iterator[bytes], directory: Path, top: str, name: str) -> int:
    """Make the files of a tar in `directory`; bytes of their contents.

    Args:
        top: what the archive calls its top; `name`: what it is called here (CONTENTS: nothing).

    Raises:
        InvalidInput: the archive is damaged, or would go elsewhere. StorageError.
    """
    target = _Target(extended(directory))
    size = 0
    try:
        with tarfile.open(fileobj=cast(IO[bytes], _Stream(chunks)), mode="r|") as archive:
            while (member := archive.next()) is not None:
                path = _parts(renamed(member.name, top, name))
                if member.islnk():
                    target.link(path, _parts(renamed(member.linkname, top, name)))
                elif member.isreg():
                    target.make(path, member, archive.extractfile(member))
                    size += member.size
                else:
                    target.make(path, member, None)
                cast(Any, archive).members.clear()  # it would remember every one
    except tarfile.TarError as error:
        raise InvalidInput(f"the container's archive is damaged: {error}") from error
    except OSError as error:
        words = f"cannot write {_shown(error.filename or directory)}: {error.strerror}"
        raise StorageError(words, hint=_link_hint(error)) from error
    target.finish()
    return size


class _Target:
    """A directory that is unpacked to."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._links: set[tuple[int, int]] = set()
        self._spellings = Spellings()
        self._times: list[tuple[Path, int, float]] = []

    def make(
        self, parts: tuple[str, ...], member: tarfile.TarInfo, contents: IO[bytes] | None
    ) -> None:
        if not parts:
            return  # the directory itself is there already, and is not changed
        path = self._place(parts, member.isdir())
        if member.isdir():
            path.mkdir(exist_ok=True)
            self._spellings.made(path)
            self._times.append((path, member.mode & _PERMISSIONS, member.mtime))
        elif member.issym():
            path.symlink_to(member.linkname)
            self._spellings.made(path)
            self._links.add(_inode(path.lstat()))
        elif contents is not None:
            with path.open("xb") as file:
                self._spellings.made(path)
                shutil.copyfileobj(contents, file, _READ_SIZE)
            path.chmod(member.mode & _PERMISSIONS)
            os.utime(path, (member.mtime, member.mtime))
        elif member.isfifo() and hasattr(os, "mkfifo"):
            _os.mkfifo(path, member.mode & _PERMISSIONS)
            self._spellings.made(path)
        else:
            print(f"wherry: left out: {_shown(path)} is a device", file=sys.stderr)

    def link(self, parts: tuple[str, ...], first: tuple[str, ...]) -> None:
        """One more name of a file that was unpacked before."""
        source = self._checked(first)
        if not stat.S_ISREG(source.lstat().st_mode):
            raise InvalidInput(f"the container's archive links {'/'.join(first)!r} to no file")
        path = self._place(parts, False)
        path.hardlink_to(source)
        self._spellings.made(path)

    def finish(self) -> None:
        """Modes and times of directories, last: what is made in one changes its time."""
        for path, mode, mtime in reversed(self._times):
            if path.is_dir() and not path.is_symlink():
                path.chmod(mode)
                os.utime(path, (mtime, mtime))

    def _place(self, parts: tuple[str, ...], is_directory: bool) -> Path:
        """Where an entry goes: its parents are made, what is in its way is removed."""
        path = self._checked(parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        status = _status(path)
        if status is not None and (other := self._spellings.conflict(path)) is not None:
            raise InvalidInput(
                f"{_shown(path)} and {_shown(other)} are one name on this file system",
                hint="keep both in a tar: wherry cp CONTAINER:PATH - > file.tar",
            )
        there = status is not None and _inode(status) not in self._links and path.is_dir()
        if there and not is_directory:
            raise InvalidInput(f"cannot overwrite directory {_shown(path)} with non-directory")
        if not there and status is not None:
            if is_directory:
                raise InvalidInput(f"cannot overwrite non-directory {_shown(path)} with directory")
            path.unlink()
            self._links.discard(_inode(status))
        return path

    def _checked(self, parts: tuple[str, ...]) -> Path:
        """A path none of whose parents is a link that the archive has brought."""
        path = self._directory
        for part in parts:
            if self._links and (status := _status(path)) and _inode(status) in self._links:
                raise InvalidInput(
                    f"the container's archive goes through its own link {_shown(path)}"
                )
            path = path / part
        return path


def _shown(path: Path | str) -> str:
    return plain_text(os.fspath(path))


def _link_hint(error: OSError) -> str | None:
    if getattr(error, "winerror", None) != _ERROR_PRIVILEGE_NOT_HELD:
        return None
    return (
        "it is a symbolic link: turn Windows' developer mode on,"
        " or keep it in a tar: wherry cp CONTAINER:PATH - > file.tar"
    )


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _parts(name: str) -> tuple[str, ...]:
    """A clean name's parts; none for the top. Raises InvalidInput for one that leads out."""
    if name == CONTENTS:
        return ()
    parts = tuple(name.split("/"))
    if {"..", ""} & set(parts) or any(os.sep in part for part in parts):
        raise InvalidInput(f"the container's archive has a name that leads out of it: {name!r}")
    if sys.platform == "win32":
        for part in parts:
            if (reason := trouble(part)) is not None:
                raise InvalidInput(
                    f"Windows cannot have the container's file {name!r}: {reason}",
                    hint="keep it in a tar: wherry cp CONTAINER:PATH - > file.tar",
                )
    return parts


class _Stream:
    """An iterator as a file to read once, forward."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, most: int) -> bytes:
        parts, left = [], most
        while left:
            if not self._rest:
                self._rest = next(self._chunks, b"")
                if not self._rest:
                    break
            data, self._rest = self._rest[:left], self._rest[left:]
            parts.append(data)
            left -= len(data)
        return b"".join(parts)
