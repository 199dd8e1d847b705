"""Headers about the next entry: pax records, and what GNU tar adds to them. Sans-I/O.

Sources: POSIX.1-2017 `pax`, "pax Extended Header"; GNU tar manual, "Storing Sparse Files".
"""

from __future__ import annotations

import re
from collections.abc import Callable

from wherry.images.tar_entry import BLOCK, LayerError, TarEntry, shown

_DECIMAL_TIME = re.compile(rb"(-?)([0-9]{1,19})(?:\.([0-9]*))?")
_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.sparse."


def pax_records(data: bytes, after: bytes = b"") -> list[tuple[bytes, bytes]]:
    """The records of a pax header ("%d %s=%s\\n"), in order.

    Raises:
        LayerError: a record is malformed; the message says after which entry (`after`).
    """
    records = []
    pos = 0
    while pos < len(data):
        space = data.find(b" ", pos, pos + 12)
        digits = data[pos:space]
        end = pos + int(digits) if space > 0 and digits.isdigit() else 0
        equals = data.find(b"=", space, end)
        if end > len(data) or equals <= space + 1 or data[end - 1] != 0x0A:
            raise LayerError(f"a malformed pax header stands after {shown(after)}")
        records.append((data[space + 1 : equals], data[equals + 1 : end - 1]))
        pos = end
    return records


class Extra:
    """What pax and GNU headers say about the entry that follows them."""

    __slots__ = (
        "gid",
        "link",
        "long_link",
        "long_name",
        "mtime",
        "name",
        "size",
        "sparse",
        "uid",
        "xattrs",
    )

    def __init__(self) -> None:
        self.long_name: bytes | None = None  # GNU's; they win over pax records, as in Go
        self.long_link: bytes | None = None
        self.begin()

    def begin(self) -> None:
        """A pax header takes the place of an earlier one, so that they cannot pile up."""
        self.name: bytes | None = None
        self.link: bytes | None = None
        self.size: int | None = None
        self.uid: int | None = None
        self.gid: int | None = None
        self.mtime: tuple[int, int] | None = None
        self.xattrs: dict[bytes, bytes] | None = None
        self.sparse: PaxSparse | None = None

    def record(self, key: bytes, value: bytes, after: bytes) -> None:
        """Take one pax record; keys that say nothing to us are passed over, as POSIX wants."""
        if key.startswith(_XATTR):
            if self.xattrs is None:
                self.xattrs = {}
            self.xattrs[key[len(_XATTR) :]] = value
        elif key.startswith(_SPARSE):
            if self.sparse is None:
                self.sparse = PaxSparse()
            self.sparse.record(key[len(_SPARSE) :], value, after)
        elif not value:  # POSIX: an empty value takes an earlier one back
            if key in _PAX_FIELDS:
                setattr(self, _PAX_FIELDS[key], None)
        elif key == b"path" or key == b"linkpath":
            if b"\0" in value:
                raise LayerError(f"a pax {key.decode()} after {shown(after)} has a NUL in it")
            setattr(self, _PAX_FIELDS[key], value)
        elif key == b"mtime":
            self.mtime = _decimal_time(value, after)
        elif key in _PAX_FIELDS:
            setattr(self, _PAX_FIELDS[key], decimal(value, key, after))

    def apply(self, entry: TarEntry) -> None:
        sparse_name = self.sparse.name if self.sparse is not None else None
        entry.name = self.long_name or sparse_name or self.name or entry.name
        entry.link = self.long_link or self.link or entry.link
        if self.uid is not None:
            entry.uid = self.uid
        if self.gid is not None:
            entry.gid = self.gid
        if self.mtime is not None:
            entry.mtime, entry.mtime_ns = self.mtime
        if self.xattrs is not None:
            entry.xattrs = list(self.xattrs.items())


_PAX_FIELDS = {
    b"path": "name",
    b"linkpath": "link",
    b"size": "size",
    b"uid": "uid",
    b"gid": "gid",
    b"mtime": "mtime",
}


class PaxSparse:
    """GNU's sparse files in pax archives, formats 0.0, 0.1 and 1.0."""

    __slots__ = ("_last_offset", "_numbers", "_real_size", "_version", "name")

    def __init__(self) -> None:
        self.name: bytes | None = None
        self._real_size: int | None = None
        self._version = [0, 0]
        self._numbers: list[int] = []
        self._last_offset: int | None = None

    def record(self, key: bytes, value: bytes, after: bytes) -> None:
        if key == b"name":
            if b"\0" in value or not value:
                raise LayerError(f"a sparse file's name after {shown(after)} is malformed")
            self.name = value
        elif key == b"map":  # 0.1
            self._numbers = [
                decimal(part, b"sparse map", after) for part in value.split(b",") if value
            ]
        elif key == b"size" or key == b"realsize":
            self._real_size = decimal(value, key, after)
        elif key == b"offset":  # 0.0: offset and numbytes take turns
            self._last_offset = decimal(value, key, after)
        elif key == b"numbytes":
            if self._last_offset is None:
                raise LayerError(f"a sparse map after {shown(after)} is malformed")
            self._numbers += (self._last_offset, decimal(value, key, after))
            self._last_offset = None
        elif key == b"major":
            self._version[0] = decimal(value, key, after)
        elif key == b"minor":
            self._version[1] = decimal(value, key, after)

    def segments(
        self, entry: TarEntry, read: Callable[[int], bytes], limit: int
    ) -> tuple[list[tuple[int, int]], int]:
        """The stored runs and the file's size.

        A map of format 1.0 stands before the contents: it is taken off with `read`, which returns
        that many bytes or raises, and may have up to `limit` bytes.
        """
        if self._version == [1, 0]:
            numbers = _map_in_data(entry, read, limit)
        elif self._version in ([0, 0], [0, 1]):
            numbers = self._numbers
        else:
            raise LayerError(f"{shown(entry.name)} is sparse in an unknown format: {self._version}")
        if self._real_size is None or len(numbers) % 2:
            raise LayerError(f"{shown(entry.name)} has an incomplete sparse map")
        return list(zip(numbers[::2], numbers[1::2], strict=True)), self._real_size


def _map_in_data(entry: TarEntry, read: Callable[[int], bytes], limit: int) -> list[int]:
    """Format 1.0: decimal numbers, one a line, the count of pairs first, padded to whole blocks."""
    numbers: list[int] = []
    wanted = 1
    rest = b""
    for _ in range(limit // BLOCK):
        *lines, rest = (rest + read(BLOCK)).split(b"\n")
        for line in lines:
            numbers.append(decimal(line, b"sparse map", entry.name))
            wanted = 1 + 2 * numbers[0]
            if len(numbers) == wanted:
                return numbers[1:]
    raise LayerError(f"{shown(entry.name)} has too long a sparse map")


def decimal(value: bytes, what: bytes, after: bytes) -> int:
    """A decimal number of a pax record."""
    if not value.isdigit() or len(value) > 20:
        raise LayerError(
            f"the pax record {what.decode('utf-8', 'backslashreplace')} after {shown(after)} "
            f"is not a number: {value[:40]!r}"
        )
    return int(value)


def _decimal_time(value: bytes, after: bytes) -> tuple[int, int]:
    """Seconds with a fraction, rounded down to nanoseconds, exact where floats are not."""
    match = _DECIMAL_TIME.fullmatch(value)
    if match is None:
        raise LayerError(f"the pax mtime after {shown(after)} is not a time: {value[:40]!r}")
    sign, seconds, fraction = match.groups()
    fraction = fraction or b""
    nanoseconds = int(seconds) * 10**9 + int(fraction[:9].ljust(9, b"0"))
    if sign:
        nanoseconds = -nanoseconds - (1 if fraction[9:].strip(b"0") else 0)
    return divmod(nanoseconds, 10**9)
