"""Helpers for tests of layers: tars made by Python's tarfile, or block by block where it cannot."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

from erofs_reader import Image

from wherry.images.erofs import Limits, write_erofs

UUID = bytes(range(16))


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: object) -> tuple:
    """A member for `tar_of`: a TarInfo and its contents."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def directory(name: str, **fields: object) -> tuple:
    return member(name, tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def symlink(name: str, target: str, **fields: object) -> tuple:
    return member(name, tarfile.SYMTYPE, linkname=target, **fields)


def hard_link(name: str, target: str) -> tuple:
    return member(name, tarfile.LNKTYPE, linkname=target)


def tar_of(*members: tuple, format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=format, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def raw_header(name: bytes, kind: bytes = b"0", size: int | bytes = 0, **fields: bytes) -> bytes:
    """One header block; `fields` replace parts of it (mode, uid, gid, size, mtime, ...)."""
    places = {
        "name": (0, 100),
        "mode": (100, 8),
        "uid": (108, 8),
        "gid": (116, 8),
        "size": (124, 12),
        "mtime": (136, 12),
        "linkname": (157, 100),
        "magic": (257, 8),
        "devmajor": (329, 8),
        "devminor": (337, 8),
        "prefix": (345, 155),
        "sparse": (386, 126),
    }
    values = {
        "name": name,
        "mode": b"0000644\0",
        "uid": b"0000000\0",
        "gid": b"0000000\0",
        "size": size if isinstance(size, bytes) else b"%011o\0" % size,
        "mtime": b"00000000000\0",
        "magic": b"ustar\x0000",
        **fields,
    }
    block = bytearray(512)
    for key, value in values.items():
        at, length = places[key]
        assert len(value) <= length
        block[at : at + len(value)] = value
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax_header(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    data = b""
    for key, value in records:
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(b"%d" % length) + len(rest) != length:
            length = len(b"%d" % length) + len(rest)
        data += b"%d" % length + rest
    return raw_header(b"pax", kind, len(data)) + padded(data)


END = bytes(1024)


class Drip(io.RawIOBase):
    """A stream that is not seekable and gives at most so many bytes at a time, as a pipe does."""

    def __init__(self, data: bytes, sizes: Iterable[int] = (1000,)) -> None:
        self._data = data
        self._sizes = list(sizes)
        self._turn = 0
        self.position = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        most = self._sizes[self._turn % len(self._sizes)]
        self._turn += 1
        if size >= 0:
            most = min(most, size)
        piece = self._data[self.position : self.position + most]
        self.position += len(piece)
        return piece


def image_of(tar: bytes, limits: Limits | None = None) -> Image:
    out = io.BytesIO()
    write_erofs(io.BytesIO(tar), out, uuid=UUID, limits=limits)
    return Image(out.getvalue())
