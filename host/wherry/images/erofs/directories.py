"""The end of an image: its directories, whose entries are known only when the tar was read.

First every directory gets its place, parents before children, then all are written in that order.
Small ones live behind their inode; of larger ones only the last block does, where it fits.
What can be computed twice is not kept: there may be a million directories.
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
    directories = list(tree.walk())
    addresses = _place(directories, bodies, sink.end)
    for directory in addresses:
        plan = _Plan(directory, bodies.get(directory, b""))
        for index in range(plan.full):
            sink.append(plan.block(index, whiteout))
            sink.pad()
    root = b""
    for directory in directories:
        number += 1
        plan = _Plan(directory, bodies.get(directory, b""))
        data = plan.inode(number, addresses.get(directory, layout.NULL_ADDRESS))
        if plan.inline:
            data += plan.block(len(plan.starts) - 1, whiteout)
        if directory is tree.root:
            root = data
        else:
            sink.skip(directory.nid * SLOT - sink.end)
            sink.append(data)
    sink.pad()
    return root


def _place(
    directories: list[Directory], bodies: Mapping[Directory, bytes], at: int
) -> dict[Directory, int]:
    """Give every directory its nid, and those with whole blocks the first block's number.

    From `at` on come first all whole blocks, then all inodes but the root's.
    """
    addresses: dict[Directory, int] = {}
    sizes = []
    for directory in directories:
        plan = _Plan(directory, bodies.get(directory, b""))
        sizes.append(plan.size)
        if plan.full:
            addresses[directory] = at // BLOCK_SIZE
            at += plan.full * BLOCK_SIZE
    directories[0].nid = ROOT_AT // SLOT
    for directory, size in zip(directories[1:], sizes[1:], strict=True):
        # Inline entries must not cross a block's end; an inode that is larger has none.
        if size <= BLOCK_SIZE < at % BLOCK_SIZE + size:
            at += -at % BLOCK_SIZE
        directory.nid = at // SLOT
        at += size + -size % SLOT
    return addresses


class _Plan:
    """A directory with its names in order, their split into blocks, and what of it is inline."""

    __slots__ = ("body", "directory", "full", "inline", "names", "starts", "used")

    def __init__(self, directory: Directory, body: bytes) -> None:
        self.directory = directory
        self.body = body
        self.names = sorted((*directory.children, b".", b".."))
        self.starts, self.used = layout.split_directory(self.names)
        room = _ROOT_ROOM if directory.parent is directory else BLOCK_SIZE
        self.inline = INODE_SIZE + len(body) + self.used <= room
        self.full = len(self.starts) - (1 if self.inline else 0)

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

    def inode(self, number: int, address: int) -> bytes:
        directory = self.directory
        below = sum(isinstance(child, Directory) for child in directory.children.values())
        head = INODE.pack(
            layout.FORMAT_INLINE if self.inline else layout.FORMAT_PLAIN,
            layout.xattr_count(self.body),
            _S_IFDIR | directory.mode,
            0,
            (len(self.starts) - 1) * BLOCK_SIZE + self.used,
            address,
            number & 0xFFFFFFFF,
            directory.uid,
            directory.gid,
            directory.mtime,
            directory.mtime_ns,
            2 + below,
        )
        return head + self.body
