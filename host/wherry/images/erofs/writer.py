"""A layer's tar to an EROFS image in one pass, in bounded memory, the same bytes everywhere.

How the image grows (docs/erofs.md draws it): contents of files are copied as they stream by, each
file from a block's beginning; inodes go to regions set aside between the contents, so that an
inode's number (nid) is known at once and nothing but names stays in memory. At the end come the
directories, whose entries are known only then, and last the super block. nids count from the
image's start: meta_blkaddr is 0.

Small files live behind their inode (`INLINE_MAX`); those inodes have regions of their own, so
that the others stay dense.
"""

from __future__ import annotations

import struct
import uuid as uuids
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from wherry.images import tar as tars
from wherry.images.erofs import layout
from wherry.images.erofs.directories import ROOT_AT, write_directories
from wherry.images.erofs.layout import BLOCK_SIZE, INODE, INODE_SIZE, NULL_ADDRESS, SLOT
from wherry.images.erofs.sink import Inodes, Sink
from wherry.images.erofs.tree import (
    OPAQUE_MARKER,
    WHITEOUT_META_PREFIX,
    WHITEOUT_PREFIX,
    Directory,
    Limits,
    Tree,
)
from wherry.images.tar import LayerError, TarEntry, TarLimits, TarReader, shown

FORMAT = 1
"""Of the bytes that `write_erofs` makes; part of a layer's cache key. Raised when they change."""

INLINE_MAX = 2016
"""Contents of up to this many bytes live behind their inode: two such inodes fit in a block."""

_UUID_NAMESPACE = uuids.UUID("5d1c1a2e-6f0b-5c39-9d5e-0f8f4f0f6a11")
_SYMLINK_MAX = 4095  # Linux's PATH_MAX less the NUL
_ID_MAX = (1 << 32) - 2  # (uid_t)-1 means "no change"
_COPY_SIZE = 1 << 20
_CHUNK_MAP_MAX = 1 << 18  # addresses in a sparse file's map: 1 MiB

# uapi/linux/stat.h
_S_IFIFO, _S_IFCHR, _S_IFBLK, _S_IFREG, _S_IFLNK = 0o010000, 0o020000, 0o060000, 0o100000, 0o120000
_OPAQUE = (b"trusted.overlay.opaque", b"y")  # Documentation/filesystems/overlayfs.rst


@dataclass(frozen=True, slots=True)
class ErofsInfo:
    """What was written.

    Attributes:
        size: bytes of the image, a multiple of 4096.
        entries: names in the image, the root's not counted.
        data_bytes: contents of files that were copied from the tar.
        opaque_root: the layer hides all layers below it (an opaque marker at its root). overlayfs
            does not heed that on a layer's root: whoever stacks layers leaves the lower ones out.
    """

    size: int
    entries: int
    data_bytes: int
    opaque_root: bool


def layer_uuid(diff_id: str) -> uuids.UUID:
    """The UUID of the image that this writer format makes of the layer with this diffID."""
    return uuids.uuid5(_UUID_NAMESPACE, f"{FORMAT} {diff_id}")


def write_erofs(
    tar: BinaryIO, out: BinaryIO, *, uuid: bytes | Callable[[], bytes], limits: Limits | None = None
) -> ErofsInfo:
    """Read an uncompressed layer tar to the stream's very end and write it as an EROFS image.

    Args:
        tar: read forward only; `read(n)` may return less than n bytes, and b"" at the end.
        out: a buffered, seekable file for writing; emptied first, neither closed nor synced.
        uuid: the image's UUID, 16 bytes (`layer_uuid(diff_id).bytes`), or what says it when all
            of `tar` was read.

    Raises:
        LayerError: the tar is damaged, hostile, beyond `limits` or not representable; the message
            names the entry, and `out` holds half an image. OSError of either file passes through.
    """
    limits = limits or Limits()
    if isinstance(uuid, bytes) and len(uuid) != 16:
        raise ValueError(f"a UUID has 16 bytes, not {len(uuid)}")
    writer = _Writer(out, limits)
    reader = TarReader(tar, TarLimits(header_bytes=limits.header_bytes))
    while (entry := reader.next()) is not None:
        writer.add(entry, reader)
    reader.drain()
    return writer.finish(uuid if isinstance(uuid, bytes) else uuid())


class _Writer:
    """Takes entries one by one; `finish` makes the image whole."""

    __slots__ = ("_chunked", "_count", "_data_bytes", "_plain", "_sink", "_small", "_tree")

    def __init__(self, out: BinaryIO, limits: Limits) -> None:
        self._sink = Sink(out, limits.image_bytes)
        self._sink.skip(BLOCK_SIZE)
        self._tree = Tree(limits)
        self._plain = Inodes(self._sink)
        self._small = Inodes(self._sink)
        self._count = 0
        self._data_bytes = 0
        self._chunked = False

    def add(self, entry: TarEntry, reader: TarReader) -> None:
        name, kind, tree = entry.name, entry.kind, self._tree
        if WHITEOUT_PREFIX in name and self._whiteout(name):
            return
        parent, base = tree.locate(name)
        if kind == tars.REGULAR and base:
            tree.leaf(parent, base, self._regular(entry, reader))
        elif kind == tars.DIRECTORY:
            self._describe(tree.directory(parent, base), entry)
        elif not base:
            raise LayerError(f"{shown(name)} is the layer's root, but not a directory")
        elif kind == tars.SYMLINK:
            tree.symlink(parent, base, self._symlink(entry), entry.link)
        elif kind == tars.HARD_LINK:
            tree.hard_link(parent, base, tree.find(name, entry.link))
        else:
            tree.leaf(parent, base, self._special(entry))

    def finish(self, uuid: bytes) -> ErofsInfo:
        tree, sink = self._tree, self._sink
        whiteout = self._whiteout_leaf() if tree.whiteouts else 0
        self._plain.flush()
        self._small.flush()
        sink.pad()
        bodies = {
            directory: _directory_xattrs(directory)
            for directory in tree.walk()
            if directory.xattrs or directory.opaque
        }
        root = write_directories(tree, sink, bodies=bodies, whiteout=whiteout, number=self._count)
        if ROOT_AT + len(root) > BLOCK_SIZE:
            raise LayerError("the extended attributes of the layer's root are too long together")
        sink.flush()
        for nid, count in tree.links.items():
            sink.write_at(nid * SLOT + layout.NLINK_AT, layout.NLINK.pack(count))
        area = layout.super_block_area(
            uuid=uuid,
            root_nid=ROOT_AT // SLOT,
            inodes=tree.inodes,
            blocks=sink.end // BLOCK_SIZE,
            chunked=self._chunked,
            rest=root,
        )
        sink.write_at(layout.SUPER_OFFSET, area)
        sink.close()
        return ErofsInfo(sink.end, tree.names, self._data_bytes, tree.root.opaque)

    # Whiteouts.

    def _whiteout(self, name: bytes) -> bool:
        """Take an entry whose name is a whiteout's; False when it is an ordinary name."""
        path, _, base = name.rstrip(b"/").rpartition(b"/")
        if base == OPAQUE_MARKER:
            self._tree.locate(path + b"/" + base)[0].opaque = True
            return True
        if name.startswith(WHITEOUT_META_PREFIX) or b"/" + WHITEOUT_META_PREFIX in name:
            return True  # AUFS's own bookkeeping: engines pass it over, with all that is below it
        if not base.startswith(WHITEOUT_PREFIX):
            return False
        hidden = base[len(WHITEOUT_PREFIX) :]
        if hidden in (b"", b".", b".."):
            raise LayerError(f"{shown(name)} is a whiteout of nothing")
        self._tree.whiteout(*self._tree.locate(path + b"/" + hidden))
        return True

    def _whiteout_leaf(self) -> int:
        """One inode under all the hidden names, as overlayfs itself does it."""
        tree = self._tree
        head = self._inode(
            TarEntry(b"", tars.CHARACTER, 0, 0, 0), layout.FORMAT_PLAIN, _S_IFCHR, 0, 0
        )
        nid = self._plain.put(head)
        tree.links[nid] = tree.whiteouts
        tree.inodes += 1
        return nid << 3 | layout.FT_CHARACTER

    # Directories are written at the end.

    def _describe(self, directory: Directory, entry: TarEntry) -> None:
        """Give a directory the entry's owner, mode, time and xattrs."""
        time_fits = -(1 << 63) <= entry.mtime < 1 << 63
        if not (time_fits and 0 <= entry.uid <= _ID_MAX and 0 <= entry.gid <= _ID_MAX):
            raise _out_of_range(entry)
        directory.mode = entry.mode
        directory.uid = entry.uid
        directory.gid = entry.gid
        directory.mtime = entry.mtime
        directory.mtime_ns = entry.mtime_ns
        directory.xattrs = None
        if entry.xattrs:
            # Packed once here, so that what is too long is said now, by name.
            self._tree.charge(len(_xattrs(entry)))
            directory.xattrs = _kept(entry)

    # Entries that are not directories: each writes an inode and returns its leaf.

    def _regular(self, entry: TarEntry, reader: TarReader) -> int:
        size = entry.size
        mode = _S_IFREG | entry.mode
        body = _xattrs(entry) if entry.xattrs else b""
        if entry.segments is not None:
            return self._sparse(entry, reader, body)
        if not size:
            head = self._inode(entry, layout.FORMAT_PLAIN, mode, 0, NULL_ADDRESS, body)
            return self._plain.put(head) << 3 | layout.FT_REGULAR
        self._data_bytes += size
        if size <= INLINE_MAX and INODE_SIZE + len(body) + size <= BLOCK_SIZE:
            head = self._inode(entry, layout.FORMAT_INLINE, mode, size, NULL_ADDRESS, body)
            return self._small.put(head, reader.read_exactly(size)) << 3 | layout.FT_REGULAR
        sink = self._sink
        head = self._inode(entry, layout.FORMAT_PLAIN, mode, size, sink.end // BLOCK_SIZE, body)
        while data := reader.read(_COPY_SIZE):
            sink.append(data)
        sink.pad()
        return self._plain.put(head) << 3 | layout.FT_REGULAR

    def _sparse(self, entry: TarEntry, reader: TarReader, body: bytes) -> int:
        """A file with holes: in chunks, the smallest with which the map of addresses is short."""
        size = entry.size
        bits = 0
        while size > (BLOCK_SIZE << bits) * _CHUNK_MAP_MAX:
            bits += 1
        if bits > layout.CHUNK_BITS_MAX:
            raise LayerError(f"{shown(entry.name)} is too large: {size} bytes")
        chunk = BLOCK_SIZE << bits
        addresses = [NULL_ADDRESS] * -(-size // chunk)
        sink = self._sink
        filled = chunk_end = 0  # offsets in the file
        for offset, length in entry.segments or ():
            self._data_bytes += length
            end = offset + length
            while offset < end:
                if offset >= chunk_end:
                    sink.skip(chunk_end - filled)
                    filled = offset - offset % chunk
                    chunk_end = min(filled + chunk, size + -size % BLOCK_SIZE)
                    addresses[offset // chunk] = sink.end // BLOCK_SIZE
                sink.skip(offset - filled)
                part = min(end, chunk_end) - offset
                self._copy(reader, part)
                offset += part
                filled = offset
        sink.skip(chunk_end - filled)
        self._chunked = True
        head = self._inode(entry, layout.FORMAT_CHUNKS, _S_IFREG | entry.mode, size, bits, body)
        nid = self._plain.put(head + struct.pack(f"<{len(addresses)}I", *addresses))
        return nid << 3 | layout.FT_REGULAR

    def _copy(self, reader: TarReader, count: int) -> None:
        while count:
            data = reader.read(min(count, _COPY_SIZE))
            self._sink.append(data)
            count -= len(data)

    def _symlink(self, entry: TarEntry) -> int:
        target = entry.link
        size = len(target)
        if not 0 < size <= _SYMLINK_MAX or b"\0" in target:
            raise LayerError(f"{shown(entry.name)} is a symlink with a target of {size} bytes")
        body = _xattrs(entry) if entry.xattrs else b""
        if INODE_SIZE + len(body) + size <= BLOCK_SIZE:
            head = self._inode(
                entry, layout.FORMAT_INLINE, _S_IFLNK | 0o777, size, NULL_ADDRESS, body
            )
            return self._plain.put(head, target) << 3 | layout.FT_SYMLINK
        address = self._sink.end // BLOCK_SIZE
        self._sink.append(target)
        self._sink.pad()
        head = self._inode(entry, layout.FORMAT_PLAIN, _S_IFLNK | 0o777, size, address, body)
        return self._plain.put(head) << 3 | layout.FT_SYMLINK

    def _special(self, entry: TarEntry) -> int:
        """A device or a fifo."""
        body = _xattrs(entry) if entry.xattrs else b""
        if entry.kind == tars.FIFO:
            head = self._inode(entry, layout.FORMAT_PLAIN, _S_IFIFO | entry.mode, 0, 0, body)
            return self._plain.put(head) << 3 | layout.FT_FIFO
        if not entry.major and not entry.minor:
            raise LayerError(
                f"{shown(entry.name)} is a 0/0 device, which only a whiteout may become",
                hint="a layer hides a file with an empty file named .wh.NAME",
            )
        try:
            number = layout.device_number(entry.major, entry.minor)
        except ValueError as error:
            raise LayerError(f"{shown(entry.name)}: {error}") from None
        if entry.kind == tars.CHARACTER:
            kind, mode = layout.FT_CHARACTER, _S_IFCHR
        else:
            kind, mode = layout.FT_BLOCK, _S_IFBLK
        head = self._inode(entry, layout.FORMAT_PLAIN, mode | entry.mode, 0, number, body)
        return self._plain.put(head) << 3 | kind

    def _inode(
        self, entry: TarEntry, layout_: int, mode: int, size: int, address: int, body: bytes = b""
    ) -> bytes:
        self._count = count = (self._count + 1) & 0xFFFFFFFF
        if entry.uid > _ID_MAX or entry.gid > _ID_MAX:
            raise _out_of_range(entry)
        try:
            head = INODE.pack(
                layout_,
                layout.xattr_count(body) if body else 0,
                mode,
                0,
                size,
                address,
                count,
                entry.uid,
                entry.gid,
                entry.mtime,
                entry.mtime_ns,
                1,
            )
        except struct.error:
            raise _out_of_range(entry) from None
        return head + body if body else head


def _out_of_range(entry: TarEntry) -> LayerError:
    return LayerError(
        f"{shown(entry.name)} has an owner or a time that no file can have: "
        f"uid {entry.uid}, gid {entry.gid}, mtime {entry.mtime}"
    )


def _kept(entry: TarEntry) -> list[tuple[bytes, bytes]]:
    """The xattrs that a layer may set and that Linux could store on such a file.

    `trusted.*` and `user.overlay.*` steer overlayfs, so they are ours to set.
    """
    with_user = entry.kind in (tars.REGULAR, tars.DIRECTORY)  # xattr(7)
    return [
        (name, value)
        for name, value in entry.xattrs or ()
        if not name.startswith((b"trusted.", b"user.overlay."))
        and (with_user or not name.startswith(b"user."))
        and layout.xattr_index(name) is not None
    ]


def _xattrs(entry: TarEntry) -> bytes:
    try:
        return layout.xattr_body(_kept(entry))
    except ValueError as error:
        raise LayerError(f"{shown(entry.name)}: {error}") from None


def _directory_xattrs(directory: Directory) -> bytes:
    xattrs = list(directory.xattrs or ())
    if directory.opaque:
        xattrs.append(_OPAQUE)
    try:
        return layout.xattr_body(xattrs)
    except ValueError as error:
        raise LayerError(f"{shown(directory.path())}: {error}") from None
