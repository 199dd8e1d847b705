"""Tar headers: one entry's facts in, the bytes that stand before its contents out. Sans-I/O.

POSIX ustar (pax(1), "ustar Interchange Format"), with a pax extended header for what ustar cannot
hold: long names, big numbers, extended attributes. Times are whole seconds, as in Docker's layers.
The same facts give the same bytes, always: no names of users, no clock, no order but the caller's.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

BLOCK: Final = 512

# Type flags, pax(1).
REGULAR: Final = b"0"
HARD_LINK: Final = b"1"
SYMLINK: Final = b"2"
CHARACTER: Final = b"3"
BLOCK_DEVICE: Final = b"4"
DIRECTORY: Final = b"5"
FIFO: Final = b"6"
_PAX: Final = b"x"

END: Final = bytes(2 * BLOCK)
"""What stands behind the last entry."""

# name mode uid gid size mtime checksum type link magic uname gname major minor prefix
_HEADER: Final = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x")
_MAGIC: Final = b"ustar\x0000"
_NO_CHECKSUM: Final = b" " * 8
_NAME_BYTES: Final = 100
_PREFIX_BYTES: Final = 155
_ID_MAX: Final = 0o7777777
_SIZE_MAX: Final = 0o77777777777
_XATTR: Final = b"SCHILY.xattr."
"""star's prefix, which GNU tar, Go and Docker understand."""

_PAX_NAME: Final = b"././@PaxHeader"
"""The name of a pax header's own entry: nobody reads it."""

Xattrs = Sequence[tuple[bytes, bytes]]


def header(
    name: bytes,
    kind: bytes,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    xattrs: Xattrs = (),
) -> bytes:
    """The header of one entry; its contents, padded by `padding(size)`, follow.

    Args:
        name: a directory's ends with `/`.
        kind: a type flag.
        mode: the low 12 bits. mtime: seconds since the epoch. size: bytes of contents.
        link: the target of a link. device: (major, minor). xattrs: written in this order.
    """
    records: list[bytes] = []
    prefix = b""
    if len(name) > _NAME_BYTES:
        split = _split(name)
        if split is None:
            records.append(_record(b"path", name))
            name = name[:_NAME_BYTES]
        else:
            prefix, name = split
    if len(link) > _NAME_BYTES:
        records.append(_record(b"linkpath", link))
        link = link[:_NAME_BYTES]
    uid = _number(records, b"uid", uid, _ID_MAX)
    gid = _number(records, b"gid", gid, _ID_MAX)
    size = _number(records, b"size", size, _SIZE_MAX)
    mtime = _number(records, b"mtime", mtime, _SIZE_MAX)
    for key, value in xattrs:
        records.append(_record(_XATTR + key, value))
    own = _ustar(name, kind, mode, uid, gid, size, mtime, link, device, prefix)
    if not records:
        return own
    body = b"".join(records)
    extended = _ustar(_PAX_NAME, _PAX, 0o644, 0, 0, len(body), 0, b"", (0, 0), b"")
    return b"".join((extended, body, padding(len(body)), own))


def padding(size: int) -> bytes:
    """The zeros that follow contents of `size` bytes."""
    return bytes(-size % BLOCK)


def _ustar(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    link: bytes,
    device: tuple[int, int],
    prefix: bytes,
) -> bytes:
    fields = (
        name,
        b"%07o" % (mode & 0o7777),
        b"%07o" % uid,
        b"%07o" % gid,
        b"%011o" % size,
        b"%011o" % mtime,
    )
    rest = (kind, link, _MAGIC, b"", b"", b"%07o" % device[0], b"%07o" % device[1], prefix)
    total = sum(b"".join((*fields, _NO_CHECKSUM, *rest)))  # what is filled up counts nothing
    return _HEADER.pack(*fields, b"%06o\0 " % total, *rest)


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """(prefix, name) as ustar joins them with `/`; None when it does not fit."""
    if len(name) > _PREFIX_BYTES + 1 + _NAME_BYTES:
        return None
    at = name.rfind(b"/", 1, min(_PREFIX_BYTES + 1, len(name) - 1))
    if at <= 0 or len(name) - at - 1 > _NAME_BYTES:
        return None
    return name[:at], name[at + 1 :]


def _number(records: list[bytes], key: bytes, value: int, most: int) -> int:
    """The value for the octal field: 0 when the number had to go into a pax record."""
    if 0 <= value <= most:
        return value
    records.append(_record(key, b"%d" % value))
    return 0


def _record(key: bytes, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE\\n`, where the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)
