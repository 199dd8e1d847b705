"""The end of an image: its directories, whose entries are known only when the tar was read.

First every directory gets its place, parents before children, then all are written in that order.
Small ones live behind their inode; of larger ones only the last block does, where it fits.
"""

from __future__ import annotations

from collections.abc import Mapping

from wherry.images.erofs import layout
from wherry.images.erofs.layout import BLOCK_SIZE, FT_DIRECTORY, INODE, INODE_SIZE, SLOT
from wherry.images.erofs.sink import Sink
from wherry.images.erofs.tree import WHITEOUT, Directory, Tree

ROOT_AT = layout.SUPER_OFFSET + layout.SUPER_SIZE
"""The root's inode follows the super block: root_nid has 16 bits."""
_ROOT_ROOM = BLOCK_SIZE - ROOT_AT

_S_IFDIR = 0o040000


class _Placed:
    """A directory with its names in order, their split into blocks, and where its parts go."""

    __slots__ = ("address", "body", "directory", "full", "inline", "names", "starts", "used")

    def __init__(self, directory: Directory, body: bytes, room: int) -> None:
        self.directory = directory
        self.body = body
        self.names = sorted((*directory.children, b".", b".."))
        self.starts, self.used = layout.split_directory(self.names)
        self.inline = INODE_SIZE + len(body) + self.used <= room
        self.full = len(self.starts) - (1 if self.inline else 0)
        self.address = layout.NULL_ADDRESS

    @property
    def size(self) -> int:
        return INODE_SIZE + len(self.body) + (self.used if self.inline else 0)

    def block(self, index: int, whiteout: int) -> bytes:
        """Block `index`, not padded."""
        end = self.starts[index + 1] if index + 1 < len(self.starts) else len(self.names)
        names = self.names[self.starts[index] : end]
        directory = self.directory
        children = directory.children
        entries = []
        for name in names:
            child = children.get(name)
            if isinstance(child, Directory):
                entries.append(child.nid << 3 | FT_DIRECTORY)
            elif child is None:
                of = directory if name == b"." else directory.parent
                entries.append(of.nid << 3 | FT_DIRECTORY)
            else:
                entries.append(whiteout if child == WHITEOUT else child)
        return layout.directory_block(names, entries)

    def inode(self, number: int) -> bytes:
        directory = self.directory
        below = sum(isinstance(child, Directory) for child in directory.children.values())
        return (
            INODE.pack(
                layout.FORMAT_INLINE if self.inline else layout.FORMAT_PLAIN,
                layout.xattr_count(self.body),
                _S_IFDIR | directory.mode,
                0,
                (len(self.starts) - 1) * BLOCK_SIZE + self.used,
                self.address,
                number,
                directory.uid,
                directory.gid,
                directory.mtime,
                directory.mtime_ns,
                2 + below,
            )
            + self.body
        )


def write_directories(
    tree: Tree, sink: Sink, *, bodies: Mapping[Directory, bytes], whiteout: int, number: int
) -> bytes:
    """Append all directories to `sink`, which ends at a block's end.

    Args:
        bodies: xattr bodies of those directories that have one.
        whiteout: the leaf of the shared whiteout inode.
        number: i_ino of the last inode so far.

    Returns:
        What belongs at ROOT_AT: the root's inode, its xattrs and inline entries.
    """
    placed = [
        _Placed(directory, bodies.get(directory, b""), BLOCK_SIZE if depth else _ROOT_ROOM)
        for depth, directory in enumerate(tree.walk())
    ]
    _number(placed, sink.end)
    for item in placed:
        for index in range(item.full):
            sink.append(item.block(index, whiteout))
            sink.pad()
    root = b""
    for item in placed:
        number += 1
        data = item.inode(number)
        if item.inline:
            data += item.block(len(item.starts) - 1, whiteout)
        if item.directory is tree.root:
            root = data
            continue
        sink.skip(item.directory.nid * SLOT - sink.end)
        sink.append(data)
    sink.pad()
    return root


def _number(placed: list[_Placed], at: int) -> None:
    """Give blocks and nids: first all whole blocks from `at` on, then all inodes but the root's."""
    for item in placed:
        if item.full:
            item.address = at // BLOCK_SIZE
            at += item.full * BLOCK_SIZE
    placed[0].directory.nid = ROOT_AT // SLOT
    for item in placed[1:]:
        # Inline entries must not cross a block's end.
        if item.inline and at % BLOCK_SIZE + item.size > BLOCK_SIZE:
            at += -at % BLOCK_SIZE
        item.directory.nid = at // SLOT
        at += item.size + -item.size % SLOT
