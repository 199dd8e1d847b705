"""Debian binary packages: an `ar` archive that holds `control.tar.*` and `data.tar.*`: deb(5).

Sans-I/O: bytes in, tar members out. Compressed tar files are read as a stream, so that a package
costs no more memory than its largest file.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, cast

from .errors import FormatError
from .tree import normal

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60
"""ar(5): name 16, mtime 12, uid 6, gid 6, mode 8, size 10, end 2."""

_AR_END = b"`\n"


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a package's file tree. `kind` is file, directory, symlink, hardlink or device.

    `target` is a link's: for a symlink as it stands, for a hardlink a normalised path. Owners are
    those numbers that are the same in every Debian (base-passwd); `mtime` counts in seconds.
    """

    path: str
    kind: str
    permissions: int
    data: bytes = b""
    target: str = ""
    uid: int = 0
    gid: int = 0
    mtime: int = 0


def ar_members(data: bytes) -> Iterator[tuple[str, memoryview]]:
    """The (name, content) pairs of an `ar` archive.

    Raises:
        FormatError: not an ar archive, or cut short.
    """
    if data[: len(_AR_MAGIC)] != _AR_MAGIC:
        raise FormatError("not an ar archive")
    view = memoryview(data)
    offset = len(_AR_MAGIC)
    while offset < len(data):
        header = data[offset : offset + _AR_HEADER]
        size_text = header[48:58].strip()
        if len(header) < _AR_HEADER or header[58:] != _AR_END or not size_text.isdigit():
            raise FormatError("damaged ar archive")
        size = int(size_text)
        offset += _AR_HEADER
        if offset + size > len(data):
            raise FormatError("ar archive is cut short")
        yield (
            header[:16].decode("ascii", "replace").strip().rstrip("/"),
            view[offset : offset + size],
        )
        offset += size + size % 2


def data_members(deb: bytes) -> Iterator[Member]:
    """What a package installs, in the order of its tar file.

    Raises:
        FormatError: the package is damaged or compressed in a way that deb(5) does not know.
    """
    return _members(deb, "data.tar")


def control_files(deb: bytes) -> dict[str, bytes]:
    """What a package says of itself, by name: `control`, `conffiles`, maintainer scripts.

    Raises:
        FormatError: as `data_members`.
    """
    members = _members(deb, "control.tar")
    return {member.path[1:]: member.data for member in members if member.kind == "file"}


def _members(deb: bytes, archive: str) -> Iterator[Member]:
    found = ((name, data) for name, data in ar_members(deb) if name.startswith(archive))
    name, content = next(found, ("", memoryview(b"")))
    if not name:
        raise FormatError(f"the package has no {archive}")
    try:
        with (
            _decompressed(name, archive, content) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            for info in tar:
                yield _member(tar, info)
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise FormatError(f"damaged package: {error}") from error


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    kind, data, target = "device", b"", ""
    if info.isreg():
        content = tar.extractfile(info)
        kind, data = "file", content.read() if content else b""
    elif info.isdir():
        kind = "directory"
    elif info.issym():
        kind, target = "symlink", info.linkname
    elif info.islnk():
        kind, target = "hardlink", normal(info.linkname)
    return Member(
        path=normal(info.name),
        kind=kind,
        permissions=info.mode & 0o7777,
        data=data,
        target=target,
        uid=info.uid,
        gid=info.gid,
        mtime=int(info.mtime),
    )


def _decompressed(name: str, archive: str, content: memoryview) -> IO[bytes]:
    raw = io.BytesIO(content)
    suffix = name.removeprefix(archive)
    if suffix == ".xz" or suffix == ".lzma":
        return lzma.open(raw)
    if suffix == ".zst":
        return open_zstd(raw)
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(raw))
    if suffix == ".bz2":
        return bz2.open(raw)
    if suffix == "":
        return raw
    raise FormatError(f"the package holds {name}: unknown compression")


def open_zstd(raw: IO[bytes]) -> IO[bytes]:
    """A readable, decompressed view of a zstd stream."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return cast(IO[bytes], zstd.open(raw))
