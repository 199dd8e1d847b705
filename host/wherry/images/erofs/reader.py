"""Read the EROFS images that `write_erofs` makes: inodes, directories, contents, xattrs.

Rules: what the file says is checked before it is used, so a damaged or forged image ends in an
`ErofsError` that says where, never in a crash, a loop or a read outside of the file; only the part
of the format that our writer uses is understood, the rest is refused by name. Sources: layout.py.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from wherry.errors import StorageError
from wherry.images.erofs import layout
from wherry.images.erofs.layout import BLOCK_SIZE, INODE, INODE_SIZE, NULL_ADDRESS, SLOT

ENTRIES_MAX = 4_000_000
"""Names in one image; twice what the writer allows."""
DEPTH_MAX = 1100

_WINDOW = 64 << 10
_WINDOWS_KEPT = 64
_PIECE = 1 << 20
_DIRENT = struct.Struct("<QHBx")
_PREFIXES = {index: prefix for prefix, index in layout.XATTR_PREFIXES}


class ErofsError(StorageError):
    """The image is damaged, or not one of ours."""


@dataclass(frozen=True, slots=True)
class Inode:
    """An inode.

    Attributes:
        nid: its number: the place in the image / 32.
        mode: file type and permissions, as stat(2) has them.
        size: bytes of contents, holes included; of a symlink's target.
        rdev: device number as Linux's new_encode_dev has it.
        layout: `layout.FORMAT_…`. address: i_u. body: bytes of xattrs behind it.
    """

    nid: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    mtime_ns: int
    links: int
    layout: int
    address: int
    body: int

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_whiteout(self) -> bool:
        return stat.S_ISCHR(self.mode) and not self.address

    @property
    def rdev(self) -> int:
        return self.address if stat.S_ISCHR(self.mode) or stat.S_ISBLK(self.mode) else 0


class ErofsImage:
    """An open image. Attributes: `uuid` (16 bytes), `size` (bytes that the super block counts).

    Not thread-safe. All methods raise ErofsError; OSError of the file passes through.
    """

    def __init__(self, file: BinaryIO, name: str = "the image") -> None:
        self._file = file
        self._name = name
        self._windows: dict[int, bytes] = {}
        self._end = file.seek(0, 2)
        area = self._read(layout.SUPER_OFFSET, BLOCK_SIZE - layout.SUPER_OFFSET)
        fields = layout.SUPER.unpack_from(area)
        if fields[0] != layout.SUPER_MAGIC:
            raise self._error("it has no EROFS super block")
        unsummed = area[:4] + bytes(4) + area[8:]
        if layout.crc32c(unsummed) != fields[1]:
            raise self._error("the super block's checksum is wrong")
        if fields[3] != layout.BLOCK_BITS or fields[10] or fields[14] & ~_KNOWN_FEATURES:
            raise self._error("it is in a form that is not ours")
        self.uuid: bytes = fields[12]
        self.size = fields[9] * BLOCK_SIZE
        self._root = fields[5]
        if self.size > self._end:
            raise self._error(f"it has {self._end} bytes of {self.size}")

    @property
    def root(self) -> Inode:
        root = self.inode(self._root)
        if not root.is_directory:
            raise self._error("its root is no directory")
        return root

    def inode(self, nid: int) -> Inode:
        (format_, icount, mode, _, size, address, _, uid, gid, mtime, nanoseconds, links) = (
            INODE.unpack(self._read(nid * SLOT, INODE_SIZE))
        )
        if format_ not in _LAYOUTS or not stat.S_IFMT(mode):
            raise self._error(f"inode {nid} is of an unknown form")
        body = layout.xattr_body_size(icount)
        return Inode(nid, mode, uid, gid, size, mtime, nanoseconds, links, format_, address, body)

    def entries(self, directory: Inode) -> Iterator[tuple[bytes, int]]:
        """Names and nids, without "." and "..", in the order in which they stand."""
        if not directory.is_directory or directory.size > self._end:
            raise self._error(f"inode {directory.nid} is no directory")
        data = b"".join(self.contents(directory))
        for start in range(0, len(data), BLOCK_SIZE):
            yield from self._block(data[start : start + BLOCK_SIZE], directory)

    def contents(self, inode: Inode) -> Iterator[bytes]:
        """A file's bytes in pieces, holes as zeros; a symlink's target, a directory's blocks."""
        if inode.layout == layout.FORMAT_CHUNKS:
            yield from self._chunks(inode)
            return
        whole = inode.size
        if inode.size and inode.layout == layout.FORMAT_INLINE:  # its last block, also a full one
            whole = (inode.size - 1) // BLOCK_SIZE * BLOCK_SIZE
        tail = inode.size - whole
        if whole:
            if inode.address == NULL_ADDRESS:
                raise self._error(f"inode {inode.nid} has no blocks")
            yield from self._pieces(inode.address * BLOCK_SIZE, whole)
        if tail:
            yield self._read(inode.nid * SLOT + INODE_SIZE + inode.body, tail)

    def target(self, link: Inode) -> bytes:
        """Where a symlink points."""
        if link.size >= BLOCK_SIZE:
            raise self._error(f"inode {link.nid} has too long a target")
        return b"".join(self.contents(link))

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        if not inode.body:
            return {}
        body = self._read(inode.nid * SLOT + INODE_SIZE, inode.body)
        if body[4]:  # h_shared_count
            raise self._error(f"inode {inode.nid} has shared attributes")
        found = {}
        at = layout.XATTR_BODY.size
        while at + layout.XATTR_ENTRY.size <= len(body):
            name_size, index, value_size = layout.XATTR_ENTRY.unpack_from(body, at)
            start = at + layout.XATTR_ENTRY.size
            end = start + name_size + value_size
            if index not in _PREFIXES or end > len(body):
                raise self._error(f"inode {inode.nid} has malformed attributes")
            name = _PREFIXES[index] + body[start : start + name_size]
            found[name] = body[start + name_size : end]
            at = end + -end % 4
        return found

    # Inside.

    def _block(self, block: bytes, directory: Inode) -> Iterator[tuple[bytes, int]]:
        """The entries of one directory block; names end where the next begins, or the block."""
        size = _DIRENT.size
        first = _DIRENT.unpack_from(block)[1] if len(block) >= size else 0
        if not first or first % size or first > len(block):
            raise self._error(f"directory {directory.nid} is damaged")
        found = [_DIRENT.unpack_from(block, at) for at in range(0, first, size)]
        ends = [offset for _, offset, _ in found[1:]] + [len(block)]
        for (nid, offset, _), end in zip(found, ends, strict=True):
            name = block[offset:end].split(b"\0", 1)[0]
            if not first <= offset <= end or not 0 < len(name) <= layout.NAME_MAX or b"/" in name:
                raise self._error(f"directory {directory.nid} is damaged")
            if name not in (b".", b".."):
                yield name, nid

    def _chunks(self, inode: Inode) -> Iterator[bytes]:
        bits = inode.address
        if bits > layout.CHUNK_BITS_MAX:
            raise self._error(f"inode {inode.nid} has impossible chunks")
        chunk = BLOCK_SIZE << bits
        at = inode.nid * SLOT + INODE_SIZE + inode.body
        for start in range(0, inode.size, chunk):
            (address,) = struct.unpack("<I", self._read(at, 4))
            at += 4
            length = min(chunk, inode.size - start)
            if address == NULL_ADDRESS:
                for left in range(length, 0, -_PIECE):
                    yield bytes(min(left, _PIECE))
            else:
                yield from self._pieces(address * BLOCK_SIZE, length)

    def _pieces(self, offset: int, length: int) -> Iterator[bytes]:
        if offset + length > self._end:
            raise self._error(f"it ends before byte {offset + length}")
        while length:
            self._file.seek(offset)
            piece = self._file.read(min(length, _PIECE))
            if not piece:
                raise self._error(f"it ends before byte {offset + length}")
            yield piece
            offset += len(piece)
            length -= len(piece)

    def _read(self, offset: int, length: int) -> bytes:
        """Some bytes of metadata, from windows of the file that are kept for a while."""
        if offset + length > self._end:
            raise self._error(f"it ends before byte {offset + length}")
        first, at = divmod(offset, _WINDOW)
        data = self._window(first)[at : at + length]
        while len(data) < length:
            first += 1
            data += self._window(first)[: length - len(data)]
        return data

    def _window(self, number: int) -> bytes:
        found = self._windows.get(number)
        if found is None:
            if len(self._windows) >= _WINDOWS_KEPT:
                self._windows.pop(next(iter(self._windows)))
            self._file.seek(number * _WINDOW)
            found = self._windows[number] = self._file.read(_WINDOW)
            if not found:
                raise self._error(f"it ends before byte {number * _WINDOW}")
        return found

    def _error(self, what: str) -> ErofsError:
        return ErofsError(f"{self._name} is damaged: {what}")


_LAYOUTS = (layout.FORMAT_PLAIN, layout.FORMAT_INLINE, layout.FORMAT_CHUNKS)
_KNOWN_FEATURES = layout.FEATURE_INCOMPAT_CHUNKED_FILE
