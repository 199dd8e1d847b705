"""What a tar archive holds, as values: entries, their kinds, and the error of a bad layer."""

from __future__ import annotations

from dataclasses import dataclass

from wherry.errors import InvalidInput

BLOCK = 512

# Type flags: POSIX "ustar", then GNU's.
REGULAR = b"0"
REGULAR_V7 = b"\0"
HARD_LINK = b"1"
SYMLINK = b"2"
CHARACTER = b"3"
BLOCK_DEVICE = b"4"
DIRECTORY = b"5"
FIFO = b"6"
CONTIGUOUS = b"7"
PAX = b"x"
PAX_GLOBAL = b"g"
GNU_LONG_NAME = b"L"
GNU_LONG_LINK = b"K"
GNU_SPARSE = b"S"


class LayerError(InvalidInput):
    """The layer is damaged, hostile or of a kind that cannot be represented; names the entry."""


@dataclass(frozen=True, slots=True)
class TarLimits:
    """What an archive may ask of the reader's memory.

    Attributes:
        header_bytes: of one pax header, GNU long name or sparse map (Go's archive/tar: 1 MiB).
    """

    header_bytes: int = 1 << 20


class TarEntry:
    """One member of an archive.

    Attributes:
        name, link: raw bytes as in the archive (pax and GNU long names applied).
        kind: the type flag; REGULAR for everything with contents, DIRECTORY for V7 directories.
        mode: the low 12 bits. uid, gid, major, minor: not negative, not otherwise bounded.
        size: bytes of the file as its reader sees it, holes included; 0 for other kinds.
        mtime, mtime_ns: seconds since the epoch (may be negative), nanoseconds above them.
        xattrs: (name, value) pairs of `SCHILY.xattr.*`, or None.
        segments: for a sparse file the (offset, length) runs that are stored, ascending and within
            `size`; None for other files.
    """

    __slots__ = (
        "gid",
        "kind",
        "link",
        "major",
        "minor",
        "mode",
        "mtime",
        "mtime_ns",
        "name",
        "segments",
        "size",
        "uid",
        "xattrs",
    )

    def __init__(self, name: bytes, kind: bytes, mode: int, uid: int, gid: int) -> None:
        self.name = name
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = 0
        self.mtime = 0
        self.mtime_ns = 0
        self.link = b""
        self.major = 0
        self.minor = 0
        self.xattrs: list[tuple[bytes, bytes]] | None = None
        self.segments: list[tuple[int, int]] | None = None


def shown(name: bytes) -> str:
    """A name from an archive, quoted and shortened for a message."""
    text = name.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 200 else f"{text[:120]}…{text[-60:]}")
