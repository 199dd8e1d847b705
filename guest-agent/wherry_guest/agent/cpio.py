"""newc cpio archives of regular files, in memory: the format of initrds, of byte code and of
agents.

Sans-I/O. Format: linux/Documentation/driver-api/early-userspace/buffer-format.rst. Archives that we
read come from the host over the link; a name that would leave the directory is refused all the
same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

_MAGIC: Final = b"070701"
_HEADER_BYTES: Final = 110
_TRAILER: Final = "TRAILER!!!"
_REGULAR: Final = 0o100000
_DIRECTORY: Final = 0o040000
_TYPE: Final = 0o170000


class CpioError(ValueError):
    """The bytes are not a newc archive, or one that names something it must not."""


def pack(files: Iterable[tuple[str, bytes]]) -> bytes:
    """An archive of the files, with the directories above them, in the order given."""
    parts: list[bytes] = []
    seen: set[str] = set()
    for name, data in files:
        for parent in _parents(name):
            if parent not in seen:
                seen.add(parent)
                parts.append(_entry(parent, _DIRECTORY | 0o755, b"", len(parts)))
        parts.append(_entry(name, _REGULAR | 0o644, data, len(parts)))
    parts.append(_entry(_TRAILER, 0, b"", 0))
    return b"".join(parts)


def unpack(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """The regular files of an archive, by relative name; directories are implied.

    Raises:
        CpioError: cut off, of another format, or with a link, a device, an absolute name or `..`.
    """
    position = 0
    while True:
        header = archive[position : position + _HEADER_BYTES]
        if len(header) != _HEADER_BYTES or header[:6] != _MAGIC:
            raise CpioError(f"no newc header at byte {position}")
        try:
            fields = [int(header[at : at + 8], 16) for at in range(6, _HEADER_BYTES, 8)]
        except ValueError as error:
            raise CpioError(f"no newc header at byte {position}") from error
        mode, size, name_size = fields[1], fields[6], fields[11]
        name_at = position + _HEADER_BYTES
        name = archive[name_at : name_at + name_size - 1].decode("utf-8", "replace")
        start = _aligned(name_at + name_size)
        if name == _TRAILER:
            return
        position = _aligned(start + size)
        if start + size > len(archive):
            raise CpioError(f"{name} is cut off")
        if mode & _TYPE == _REGULAR:
            yield _checked(name), archive[start : start + size]
        elif mode & _TYPE != _DIRECTORY:
            raise CpioError(f"{name} is neither a file nor a directory")


def _checked(name: str) -> str:
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise CpioError(f"{name!r} is not a relative name")
    return name


def _parents(name: str) -> Iterator[str]:
    parts = name.split("/")[:-1]
    for count in range(1, len(parts) + 1):
        yield "/".join(parts[:count])


def _entry(name: str, mode: int, data: bytes, inode: int) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    header = _MAGIC + b"".join(b"%08X" % value for value in fields)
    return _padded(header + encoded) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _aligned(position: int) -> int:
    return position + -position % 4
