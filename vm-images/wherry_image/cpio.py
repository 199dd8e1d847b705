"""The newc cpio format, which the kernel unpacks an initramfs from: a writer and a small reader.

Sans-I/O: trees in, bytes out. Deterministic: entries in the order of `Tree`, inode numbers counted
from 1, owner 0:0, one modification time for all. The source is the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst. Archives may be concatenated when each
is padded to four bytes, as these are; a later archive's file replaces an earlier one's.
"""

from __future__ import annotations

from collections.abc import Iterator

from .errors import FormatError
from .tree import Node, Tree

_MAGIC = b"070701"
_HEADER_SIZE = 110
_TRAILER = b"TRAILER!!!"
_ALIGN = 512
"""The archive's end is padded to this, as cpio(1) does; the kernel skips zeros between archives."""

MAX_FILE = 0xFFFFFFFF
"""newc stores sizes as eight hexadecimal digits."""


def write_cpio(tree: Tree, mtime: int) -> bytes:
    """The whole tree as one newc archive; `mtime` is in seconds since the epoch.

    The root directory itself is left out: the kernel has one already.
    """
    out = bytearray()
    for inode, (path, node) in enumerate(tree, start=1):
        if path != "/":
            _append(out, inode, path[1:].encode(), node, mtime)
    _append(out, 0, _TRAILER, Node(0), 0)
    out.extend(bytes(-len(out) % _ALIGN))
    return bytes(out)


def read_cpio(data: bytes) -> Iterator[tuple[str, Node]]:
    """The entries of one archive or of several concatenated ones, in their order.

    Raises:
        FormatError: not a newc archive, or cut short.
    """
    offset = 0
    while offset < len(data):
        if data[offset] == 0:
            offset += 1
            continue
        header = data[offset : offset + _HEADER_SIZE]
        if header[:6] != _MAGIC or len(header) < _HEADER_SIZE:
            raise FormatError(f"no newc header at byte {offset} of the cpio archive")
        fields = [int(header[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        mode, size, major, minor, name_size = (fields[i] for i in (1, 6, 9, 10, 11))
        name_at = offset + _HEADER_SIZE
        name = data[name_at : name_at + name_size - 1]
        data_at = _aligned(name_at + name_size)
        if data_at + size > len(data):
            raise FormatError(f"the cpio archive ends within {name.decode(errors='replace')}")
        offset = _aligned(data_at + size)
        if name != _TRAILER:
            yield "/" + name.decode(), Node(mode, data[data_at : data_at + size], (major, minor))


def _append(out: bytearray, inode: int, name: bytes, node: Node, mtime: int) -> None:
    size = len(node.data)
    if size > MAX_FILE:
        raise FormatError(f"{name.decode()} is too large for a cpio archive")
    links = 2 if node.is_dir else 1
    fields = (inode, node.mode, 0, 0, links, mtime, size, 0, 0, *node.device, len(name) + 1, 0)
    out += _MAGIC + b"".join(b"%08X" % field for field in fields)
    out += name + b"\0"
    out += bytes(-len(out) % 4)
    out += node.data
    out += bytes(-len(out) % 4)


def _aligned(offset: int) -> int:
    return offset + -offset % 4
