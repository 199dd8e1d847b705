"""A streaming reader of tar archives: old V7, ustar, pax and GNU, from any binary stream.

Rules: the stream is only ever read forward, in big pieces; names and link targets are bytes and
never decoded; nothing of an archive is believed before it was checked; whatever is wrong is a
`LayerError` that names the entry. Per-entry cost is what counts (a root file system has tens of
thousands of small files), so the hot path makes one object per entry and no more.

Sources: POSIX.1-2017 `pax` ("ustar Interchange Format", "pax Header"); GNU tar manual, "Basic Tar
Format" and "Storing Sparse Files". Where these leave a choice, Go's archive/tar decides, since
container engines read layers with it: global pax headers are ignored, the size of an entry
without contents (link, directory, device) is ignored, an archive may end without a marker.
"""

from __future__ import annotations

import struct
from typing import Protocol
from zlib import adler32

from wherry.images.tar_entry import (
    BLOCK,
    BLOCK_DEVICE,
    CHARACTER,
    CONTIGUOUS,
    DIRECTORY,
    FIFO,
    GNU_LONG_LINK,
    GNU_LONG_NAME,
    GNU_SPARSE,
    HARD_LINK,
    PAX,
    PAX_GLOBAL,
    REGULAR,
    REGULAR_V7,
    SYMLINK,
    LayerError,
    TarEntry,
    TarLimits,
    shown,
)
from wherry.images.tar_pax import Extra, pax_records

__all__ = [
    "BLOCK_DEVICE",
    "CHARACTER",
    "DIRECTORY",
    "FIFO",
    "HARD_LINK",
    "REGULAR",
    "SYMLINK",
    "LayerError",
    "TarEntry",
    "TarLimits",
    "TarReader",
    "shown",
]

_WITH_DATA = frozenset((REGULAR, REGULAR_V7, CONTIGUOUS, GNU_SPARSE))
_WITHOUT_DATA = frozenset((HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO))
_LINKS = frozenset((HARD_LINK, SYMLINK))
_DEVICES = frozenset((CHARACTER, BLOCK_DEVICE))
_ABOUT_THE_NEXT = frozenset((PAX, PAX_GLOBAL, GNU_LONG_NAME, GNU_LONG_LINK))

# name, mode, uid, gid, size, mtime, chksum, typeflag, linkname, magic + version,
# (uname, gname skipped), devmajor, devminor, prefix
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12x")
_USTAR = b"ustar\0"
_CHECKSUM_AT = 148

# GNU's old sparse header: four (offset, length) pairs, a continuation flag, the real size;
# continuation blocks have 21 pairs and a flag.
_SPARSE_AT, _SPARSE_PAIRS, _SPARSE_MORE_AT, _SPARSE_REAL_AT = 386, 4, 482, 483
_SPARSE_NEXT_PAIRS, _SPARSE_NEXT_MORE_AT = 21, 504
_SPARSE_PAIR = 24

_READ_SIZE = 1 << 20
_NUMBER_CACHE = 4096
_END = bytes(BLOCK)
_MAX_SIZE = (1 << 63) - 1


class Readable(Protocol):
    """What a tar is read from: at most so many bytes at a time, b"" at the end."""

    def read(self, most: int, /) -> bytes: ...


class TarReader:
    """Reads entries, and between two of them the contents of the first.

    ```
    reader = TarReader(stream)
    while (entry := reader.next()) is not None:
        while piece := reader.read(1 << 20):
            ...
    ```
    Contents that are not read are skipped. Of a sparse file only the segments are read, one after
    the other. All methods raise LayerError on a damaged or truncated archive; `what` it calls that.
    """

    __slots__ = (
        "_buffer",
        "_left",
        "_limits",
        "_name",
        "_numbers",
        "_pad",
        "_pos",
        "_read",
        "_what",
    )

    def __init__(
        self, stream: Readable, limits: TarLimits | None = None, what: str = "the layer"
    ) -> None:
        self._what = what
        self._read = stream.read
        self._limits = limits or TarLimits()
        self._buffer = b""
        self._pos = 0
        self._left = 0  # of the current entry's stored data
        self._pad = 0  # after it
        self._name = b""
        self._numbers: dict[bytes, int] = {}

    def next(self) -> TarEntry | None:
        """The next entry, or None at the end of the archive."""
        if self._left or self._pad:
            self._skip(self._left)
            self._skip_padding()
            self._left = self._pad = 0
        extra: Extra | None = None
        while True:
            header = self._block()
            if not header or header == _END:
                if extra is not None:
                    raise LayerError(f"{self._what} ends after an extended header")
                return None
            fields = _HEADER.unpack(header)
            self._check_sum(header, fields[6])
            kind = fields[7]
            if kind not in _ABOUT_THE_NEXT:
                return self._entry(header, fields, extra)
            if kind == PAX_GLOBAL:
                self._special(fields)
                continue
            if extra is None:
                extra = Extra()
            self._extend(extra, kind, self._special(fields))

    def read(self, most: int) -> bytes:
        """Up to `most` stored bytes of the current entry; b"" when all were read."""
        if most > self._left:
            most = self._left
        if not most:
            return b""
        pos = self._pos
        end = pos + most
        have = len(self._buffer)
        if end <= have or pos < have:
            data = self._buffer[pos:end]
            self._pos = pos + len(data)
        else:
            data = self._read(most if most < _READ_SIZE else _READ_SIZE)
            if not data:
                raise self._truncated()
        self._left -= len(data)
        return data

    def read_exactly(self, count: int) -> bytes:
        """The next `count` stored bytes of the current entry, which must have them."""
        data = self.read(count)
        if len(data) == count:
            return data
        pieces = [data]
        missing = count - len(data)
        while missing:
            data = self.read(missing)
            if not data:
                raise LayerError(f"{shown(self._name)} is shorter than its header says")
            pieces.append(data)
            missing -= len(data)
        return b"".join(pieces)

    def drain(self) -> None:
        """Read the stream to its end, so that whoever hashes it has seen every byte."""
        self._buffer = b""
        self._pos = self._left = self._pad = 0
        while self._read(_READ_SIZE):
            pass

    # One header block.

    def _block(self) -> bytes:
        """The next 512 bytes, or b"" at the end of the stream."""
        pos = self._pos
        end = pos + BLOCK
        if end > len(self._buffer):
            self._fill(BLOCK)
            pos, end = 0, BLOCK
            if not self._buffer:
                return b""
            if len(self._buffer) < BLOCK:
                if self._name:
                    raise self._truncated()
                size = len(self._buffer)
                raise LayerError(f"{self._what} is cut short, or no tar: it has {size} bytes")
        self._pos = end
        return self._buffer[pos:end]

    def _fill(self, wanted: int) -> None:
        """Make `wanted` bytes available at the buffer's start; fewer at the end of the stream."""
        buffer = self._buffer[self._pos :]
        self._pos = 0
        while len(buffer) < wanted:
            data = self._read(_READ_SIZE)
            if not data:
                break
            buffer = buffer + data if buffer else data
        self._buffer = buffer

    def _skip(self, count: int) -> None:
        available = len(self._buffer) - self._pos
        if count <= available:
            self._pos += count
            return
        count -= available
        self._buffer = b""
        self._pos = 0
        while count:
            data = self._read(_READ_SIZE)
            if not data:
                raise self._truncated()
            if len(data) > count:
                self._buffer = data
                self._pos = count
                return
            count -= len(data)

    def _skip_padding(self) -> None:
        """Past the current entry's padding; the archive may end in it, as in Go's archive/tar
        (`umoci insert` writes such layers)."""
        if self._pos + self._pad > len(self._buffer):
            self._fill(self._pad)
        self._pos = min(self._pos + self._pad, len(self._buffer))

    def _truncated(self) -> LayerError:
        where = f"in or after {shown(self._name)}" if self._name else "in its first entry"
        return LayerError(f"{self._what} is cut short {where}")

    def _check_sum(self, header: bytes, field: bytes) -> None:
        """POSIX: the sum of all bytes, the checksum's own eight taken as spaces.

        adler32's low half is 1 + that sum modulo 65521, and no 256 bytes reach 65521.
        """
        stored = self._number(field, b"checksum")
        low = (adler32(header[:256]) & 0xFFFF) + (adler32(header[256:]) & 0xFFFF) - 2
        own = (adler32(field) & 0xFFFF) - 1
        if low - own + 256 == stored:
            return
        at = _CHECKSUM_AT
        others = header[:at] + b" " * 8 + header[at + 8 :]
        # Old Sun tars added signed characters.
        if sum(byte - 256 if byte > 127 else byte for byte in others) != stored:
            raise self._no_tar()

    def _no_tar(self) -> LayerError:
        where = f"after {shown(self._name)}" if self._name else "at its start"
        return LayerError(
            f"{self._what} is not a tar archive: bad header checksum {where}",
            hint=f"{self._what} is damaged, or compressed otherwise than with gzip or zstd",
        )

    def _number(self, field: bytes, what: bytes) -> int:
        """An octal or base-256 number of a header; empty is 0."""
        value = self._numbers.get(field)
        if value is not None:
            return value
        if field[0] & 0x80:  # GNU: base 256, two's complement after the marking bit
            bits = len(field) * 8 - 1
            value = int.from_bytes(field, "big") & ((1 << bits) - 1)
            if field[0] & 0x40:
                value -= 1 << bits
        else:
            digits = field.split(b"\0", 1)[0].strip(b" ")
            try:
                value = int(digits, 8) if digits.isdigit() else -1
            except ValueError:
                value = -1
            if not digits:
                value = 0
            elif value < 0:
                if what == b"checksum":
                    raise self._no_tar()
                name = f"of the entry after {shown(self._name)}" if self._name else "of an entry"
                raise LayerError(f"the {what.decode()} {name} is not a number: {field!r}")
        if len(self._numbers) >= _NUMBER_CACHE:
            self._numbers.clear()
        self._numbers[field] = value
        return value

    # Entries.

    def _entry(self, header: bytes, fields: tuple[bytes, ...], extra: Extra | None) -> TarEntry:
        name, mode, uid, gid, size, mtime, _, kind, link, magic, major, minor, prefix = fields
        number = self._number
        name = name.split(b"\0", 1)[0]
        if prefix[0] and magic[:6] == _USTAR:
            name = prefix.split(b"\0", 1)[0] + b"/" + name
        entry = TarEntry(
            name, kind, number(mode, b"mode") & 0o7777, number(uid, b"uid"), number(gid, b"gid")
        )
        entry.mtime = number(mtime, b"mtime")
        stored = number(size, b"size")
        if extra is not None:
            if extra.size is not None:
                stored = extra.size
            extra.apply(entry)
        self._name = entry.name
        if kind in _WITH_DATA:
            if not 0 <= stored <= _MAX_SIZE:
                raise LayerError(f"{shown(entry.name)} has an impossible size: {stored}")
            self._with_data(entry, header, stored, extra)
        elif kind in _WITHOUT_DATA:
            if kind in _LINKS:
                if not entry.link:
                    entry.link = link.split(b"\0", 1)[0]
            elif kind in _DEVICES:
                entry.major = number(major, b"device number")
                entry.minor = number(minor, b"device number")
        else:
            raise LayerError(f"{shown(entry.name)} is of an unknown type: {kind!r}")
        return entry

    def _with_data(self, entry: TarEntry, header: bytes, stored: int, extra: Extra | None) -> None:
        entry.size = self._left = stored
        self._pad = -stored % BLOCK
        kind = entry.kind
        if kind == REGULAR_V7 and entry.name.endswith(b"/"):
            entry.kind = DIRECTORY
            entry.size = 0
            return
        entry.kind = REGULAR
        if kind == GNU_SPARSE:
            self._old_sparse(entry, header)
        elif extra is not None and extra.sparse is not None:
            entry.segments, entry.size = extra.sparse.segments(
                entry, self.read_exactly, self._limits.header_bytes
            )
        if entry.segments is not None:
            _check_segments(entry, self._left)

    def _old_sparse(self, entry: TarEntry, header: bytes) -> None:
        segments: list[tuple[int, int]] = []
        block, at, pairs, more_at = header, _SPARSE_AT, _SPARSE_PAIRS, _SPARSE_MORE_AT
        entry.size = self._number(
            header[_SPARSE_REAL_AT : _SPARSE_REAL_AT + 12], b"sparse file's size"
        )
        while True:
            for start in range(at, at + pairs * _SPARSE_PAIR, _SPARSE_PAIR):
                offset, length = block[start : start + 12], block[start + 12 : start + 24]
                if not length[0]:
                    break
                segments.append(
                    (self._number(offset, b"sparse map"), self._number(length, b"sparse map"))
                )
            if not block[more_at]:
                break
            if len(segments) * _SPARSE_PAIR > self._limits.header_bytes:
                raise LayerError(f"{shown(entry.name)} has too long a sparse map")
            block, at = self._block(), 0
            pairs, more_at = _SPARSE_NEXT_PAIRS, _SPARSE_NEXT_MORE_AT
            if not block:
                raise self._truncated()
        entry.segments = segments

    # Headers about the next entry.

    def _special(self, fields: tuple[bytes, ...]) -> bytes:
        """The contents of a pax header or a GNU long name."""
        size = self._number(fields[4], b"size")
        if not 0 <= size <= self._limits.header_bytes:
            raise LayerError(
                f"an extended header of {size} bytes stands after {shown(self._name)}; "
                f"the limit is {self._limits.header_bytes}"
            )
        self._left = size
        data = self.read_exactly(size)
        self._skip(-size % BLOCK)
        return data

    def _extend(self, extra: Extra, kind: bytes, data: bytes) -> None:
        if kind == GNU_LONG_NAME:
            extra.long_name = data.split(b"\0", 1)[0]
        elif kind == GNU_LONG_LINK:
            extra.long_link = data.split(b"\0", 1)[0]
        else:
            extra.begin()
            for key, value in pax_records(data, self._name):
                extra.record(key, value, self._name)


def _check_segments(entry: TarEntry, stored: int) -> None:
    segments = [pair for pair in entry.segments or () if pair[1]]
    end = 0
    for offset, length in segments:
        if offset < end or length < 0:
            raise LayerError(f"{shown(entry.name)} has a sparse map that is out of order")
        end = offset + length
    if end > entry.size or entry.size > _MAX_SIZE:
        raise LayerError(f"{shown(entry.name)} has a sparse map that is longer than the file")
    if sum(length for _, length in segments) != stored:
        raise LayerError(f"{shown(entry.name)} has a sparse map that does not fit its data")
    entry.segments = segments
