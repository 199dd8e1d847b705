"""Files on their way into a container: for each a record, then its contents. Sans-I/O, any OS.

The host reads the archive (`wherry.images.tar`), the guest makes the files: between the two an
entry is a length (4 bytes, big-endian), so many bytes of JSON, and `stored` bytes of contents. A
length of 0 ends it: without that it was cut short. Names are bytes; in JSON they are text with
Python's `surrogateescape`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

FILE: Final = "file"
DIRECTORY: Final = "directory"
SYMLINK: Final = "symlink"
LINK: Final = "link"
CHARACTER: Final = "character"
BLOCK: Final = "block"
FIFO: Final = "fifo"
KINDS: Final = (FILE, DIRECTORY, SYMLINK, LINK, CHARACTER, BLOCK, FIFO)

LENGTH_BYTES: Final = 4
MAX_RECORD: Final = 8 << 20
"""Bytes of a record: a name, a link's target and extended attributes; the reader's limits are
lower."""

END: Final = bytes(LENGTH_BYTES)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file.

    Attributes:
        name: relative to where the archive is unpacked, as the archive has it.
        kind: one of KINDS; LINK is a hard link.
        mode: the low 12 bits. mtime_ns: since the epoch.
        size: bytes of the file, holes included. link: of a symbolic or hard link.
        device: (major, minor). xattrs: (name, value) pairs.
        segments: (offset, length) of what is stored of a sparse file; None: all of it.
    """

    name: bytes
    kind: str
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    segments: tuple[tuple[int, int], ...] | None = None

    @property
    def stored(self) -> int:
        """How many bytes of contents follow the record."""
        if self.kind != FILE:
            return 0
        return self.size if self.segments is None else sum(length for _, length in self.segments)


def encode(entry: Entry) -> bytes:
    """The record, with its length before it."""
    record: dict[str, Any] = {
        "name": _text(entry.name),
        "kind": entry.kind,
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime_ns": entry.mtime_ns,
        "size": entry.size,
    }
    if entry.link:
        record["link"] = _text(entry.link)
    if entry.device != (0, 0):
        record["device"] = entry.device
    if entry.xattrs:
        record["xattrs"] = [[_text(name), value.hex()] for name, value in entry.xattrs]
    if entry.segments is not None:
        record["segments"] = entry.segments
    data = json.dumps(record, separators=(",", ":")).encode("ascii")
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


def decode(data: bytes) -> Entry:
    """A record without its length.

    Raises:
        ValueError: it is none.
    """
    record = json.loads(data)
    try:
        segments = record.get("segments")
        major, minor = record.get("device", (0, 0))
        entry = Entry(
            name=_bytes(record["name"]),
            kind=record["kind"],
            mode=_whole(record["mode"], 0o7777),
            uid=_whole(record["uid"], 2**32 - 2),
            gid=_whole(record["gid"], 2**32 - 2),
            mtime_ns=int(record["mtime_ns"]),
            size=_whole(record["size"], 2**63 - 1),
            link=_bytes(record.get("link", "")),
            device=(_whole(major, 2**32 - 1), _whole(minor, 2**32 - 1)),
            xattrs=tuple(
                (_bytes(name), bytes.fromhex(value)) for name, value in record.get("xattrs", ())
            ),
            segments=None if segments is None else _segments(segments, record["size"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a record of a file: {error}") from error
    if entry.kind not in KINDS:
        raise ValueError(f"{entry.kind!r} is no kind of file")
    return entry


def _segments(pairs: Any, size: int) -> tuple[tuple[int, int], ...]:
    """Ascending, and within the file."""
    end, result = 0, []
    for offset, length in pairs:
        if not end <= offset <= offset + length <= size:
            raise ValueError("a sparse file's segments are out of order")
        end = offset + length
        result.append((offset, length))
    return tuple(result)


def _whole(value: Any, most: int) -> int:
    if not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{value!r} is not from 0 to {most}")
    return value


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
