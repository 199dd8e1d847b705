"""The directory tree that a layer's entries add up to: names, replacements, whiteouts. Pure.

Rules, which are what containerd and Docker end up with when they unpack (docs/erofs.md has the
table): a later entry replaces an earlier one, two directories merge; missing parents are made;
a symlink in the middle of a path is followed inside the layer; a `..` in an entry's name, a
parent that is no directory, and a hard link to nothing are errors. A name is kept as bytes.

A leaf is an int, `nid << 3 | file type` (`layout.FT_*`), since there may be a million of them;
what the tree must know about a leaf later stands in side tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from wherry.images.erofs.layout import FT_SYMLINK, NAME_MAX
from wherry.images.tar import LayerError, shown

WHITEOUT_PREFIX = b".wh."  # OCI image-spec, layer.md, "Whiteouts"
WHITEOUT_META_PREFIX = b".wh..wh."  # AUFS's own files; of these only the next one says anything
OPAQUE_MARKER = b".wh..wh..opq"

WHITEOUT = -1
"""The leaf of a name that hides the layers below."""

_HOPS_MAX = 40  # Linux's MAXSYMLINKS
_PATH_MAX = 4096  # Linux's PATH_MAX

# What CPython 3.11 to 3.13 need for a leaf's name, its int and its place in a dict, measured with
# a million of them; and what a Directory and its dict need on top.
_LEAF_COST = 120
_DIRECTORY_COST = 400


@dataclass(frozen=True, slots=True)
class Limits:
    """What a layer may make the writer hold in memory or write; beyond it a LayerError.

    Attributes:
        entries: files and directories, implied ones included.
        tree_bytes: memory for names, directories, their xattrs and symlink targets, estimated.
        depth: components of a path.
        header_bytes: one pax header, GNU long name or sparse map.
        image_bytes: size of the image.
    """

    entries: int = 2_000_000
    tree_bytes: int = 384 << 20
    depth: int = 1024
    header_bytes: int = 1 << 20
    image_bytes: int = 1 << 40


class Directory:
    """A directory of the layer; `children` maps names to directories and leaves."""

    __slots__ = (
        "children",
        "gid",
        "mode",
        "mtime",
        "mtime_ns",
        "name",
        "nid",
        "opaque",
        "parent",
        "uid",
        "xattrs",
    )

    def __init__(self, parent: Directory | None, name: bytes) -> None:
        self.parent = parent or self
        self.name = name
        self.children: dict[bytes, Directory | int] = {}
        self.mode = 0o755
        self.uid = 0
        self.gid = 0
        self.mtime = 0
        self.mtime_ns = 0
        self.xattrs: list[tuple[bytes, bytes]] | None = None
        self.opaque = False
        self.nid = 0

    def path(self) -> bytes:
        parts = []
        node = self
        while node.parent is not node:
            parts.append(node.name)
            node = node.parent
        return b"/".join(reversed(parts))


class Tree:
    """The layer so far. All methods raise LayerError for what a layer must not do."""

    __slots__ = (
        "_cost",
        "_last_name",
        "_last_parent",
        "_limits",
        "_nodes",
        "_targets",
        "inodes",
        "links",
        "root",
        "whiteouts",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.root = Directory(None, b"")
        self.links: dict[int, int] = {}
        """nid -> link count, for those that ever had more than one."""
        self.inodes = 1
        """Inodes that have a name, the shared one of whiteouts not counted."""
        self.whiteouts = 0
        self._targets: dict[int, bytes] = {}  # nid -> target of a symlink
        self._nodes = 1
        self._cost = 0  # never given back: a layer has no reason to replace what it brought
        self._last_name: bytes | None = None
        self._last_parent = self.root

    # Where an entry goes.

    def locate(self, name: bytes) -> tuple[Directory, bytes]:
        """The parent of an entry, made when missing, and its last component (b"" for the root)."""
        parent, _, base = name.rpartition(b"/")
        if parent == self._last_name and base and base != b"." and base != b"..":
            if len(base) > NAME_MAX:
                raise LayerError(f"{shown(name)} has a component of more than {NAME_MAX} bytes")
            return self._last_parent, base
        parts = self._components(name)
        if not parts:
            return self.root, b""
        last = parts.pop()
        directory = self._walk(parts, name, make=True)
        if base == last:
            self._last_name = parent
            self._last_parent = directory
        return directory, last

    def find(self, name: bytes, target: bytes) -> int:
        """The leaf that the hard link `name` points to."""
        parts = self._components(target, named_by=name)
        if not parts:
            raise LayerError(f"{shown(name)} is a hard link to the layer's root")
        base = parts.pop()
        directory = self._walk(parts, name, make=False)
        leaf = directory.children.get(base, WHITEOUT)
        if isinstance(leaf, Directory):
            raise LayerError(f"{shown(name)} is a hard link to a directory: {shown(target)}")
        if leaf == WHITEOUT:
            raise _missing(name, target)
        return leaf

    def _components(self, path: bytes, named_by: bytes | None = None) -> list[bytes]:
        name = path if named_by is None else named_by
        what = shown(name) if named_by is None else f"{shown(name)}, a hard link to {shown(path)},"
        if len(path) > _PATH_MAX:
            raise LayerError(f"{what} has a path of more than {_PATH_MAX} bytes")
        if not path:
            raise LayerError(f"{what} has an empty name")
        if b"\0" in path:
            raise LayerError(f"{what} has a NUL in its name")
        parts = [part for part in path.split(b"/") if part and part != b"."]
        if len(parts) > self._limits.depth:
            raise LayerError(f"{what} lies deeper than {self._limits.depth} directories")
        for part in parts:
            if part == b"..":
                raise LayerError(f"{what} has a '..' in its path")
            if len(part) > NAME_MAX:
                raise LayerError(f"{what} has a component of more than {NAME_MAX} bytes")
        return parts

    def _walk(self, parts: list[bytes], name: bytes, *, make: bool) -> Directory:
        """The directory at `parts`, symlinks followed inside the layer, made when missing."""
        node = self.root
        todo = parts[::-1]
        hops = 0
        while todo:
            part = todo.pop()
            if part == b"..":  # from a symlink's target only
                node = node.parent
                continue
            child = node.children.get(part, WHITEOUT)
            if isinstance(child, Directory):
                node = child
            elif child == WHITEOUT:
                if not make:
                    raise _missing(name, b"/".join(parts))
                if len(part) > NAME_MAX:
                    raise LayerError(f"{shown(name)} has a component of more than {NAME_MAX} bytes")
                if part.startswith(WHITEOUT_PREFIX):
                    raise LayerError(f"{shown(name)} lies below a whiteout")
                node = self.directory(node, part)
            elif child & 7 == FT_SYMLINK:
                hops += 1
                target = self._targets[child >> 3]
                if hops > _HOPS_MAX:
                    raise LayerError(f"{shown(name)} lies below a loop of symbolic links")
                if target.startswith(b"/"):
                    node = self.root
                todo += [part for part in target.split(b"/")[::-1] if part and part != b"."]
            else:
                where = shown(node.path() + b"/" + part if node.name else part)
                raise LayerError(f"{shown(name)} lies below {where}, which is not a directory")
        return node

    # What it becomes there.

    def directory(self, parent: Directory, base: bytes) -> Directory:
        """The directory `base`, kept with its children when it is one already."""
        if not base:
            return parent
        child = parent.children.get(base)
        if isinstance(child, Directory):
            return child
        directory = Directory(parent, base)
        self._cost += _DIRECTORY_COST
        if child is None:
            self._count(base)
        else:
            # Hidden below and made anew in one layer: what lies below stays hidden.
            directory.opaque = child == WHITEOUT
            self._drop(child)
        parent.children[base] = directory
        self.inodes += 1
        return directory

    def leaf(self, parent: Directory, base: bytes, leaf: int) -> None:
        """Put a leaf with an inode of its own; what stood there goes."""
        children = parent.children
        if base in children:
            self._drop(children[base])
        else:
            self._count(base)
        children[base] = leaf
        self.inodes += 1

    def symlink(self, parent: Directory, base: bytes, leaf: int, target: bytes) -> None:
        self.charge(len(target) + _LEAF_COST)
        self._targets[leaf >> 3] = target
        self.leaf(parent, base, leaf)

    def hard_link(self, parent: Directory, base: bytes, leaf: int) -> None:
        """Put another name of a leaf that has one."""
        nid = leaf >> 3
        self.links[nid] = self.links.get(nid, 1) + 1
        self.leaf(parent, base, leaf)
        self.inodes -= 1

    def whiteout(self, parent: Directory, base: bytes) -> None:
        """Hide `base` of the layers below, whatever this layer itself has or gets there."""
        child = parent.children.get(base)
        if isinstance(child, Directory):
            child.opaque = True
        elif child is None:
            self._count(base)
            parent.children[base] = WHITEOUT
            self.whiteouts += 1

    def charge(self, count: int) -> None:
        """Note that something of about `count` bytes is kept until the layer's end."""
        self._cost += count
        if self._cost > self._limits.tree_bytes:
            raise LayerError(
                f"the layer's directories need more than {self._limits.tree_bytes} bytes of memory"
            )

    def _count(self, name: bytes) -> None:
        self._nodes += 1
        if self._nodes > self._limits.entries:
            raise LayerError(f"the layer has more than {self._limits.entries} entries")
        self.charge(len(name) + _LEAF_COST)

    def _drop(self, child: Directory | int) -> None:
        """A name is replaced: forget the leaf, or the directory and all below it."""
        self._last_name = None
        pending: list[Directory | int] = [child]
        while pending:
            child = pending.pop()
            if isinstance(child, Directory):
                self.inodes -= 1
                self._nodes -= len(child.children)
                pending += child.children.values()
            elif child == WHITEOUT:
                self.whiteouts -= 1
            else:
                nid = child >> 3
                count = self.links.get(nid, 1) - 1
                if count:
                    self.links[nid] = count
                else:
                    self.links.pop(nid, None)
                    self._targets.pop(nid, None)
                    self.inodes -= 1

    # Afterwards.

    @property
    def names(self) -> int:
        """Names in the layer, the root's not counted."""
        return self._nodes - 1

    def walk(self) -> Iterator[Directory]:
        """All directories, each before those below it, in the order of their names."""
        pending = [self.root]
        while pending:
            directory = pending.pop()
            yield directory
            below = [child for child in directory.children.values() if isinstance(child, Directory)]
            if len(below) > 1:
                below.sort(key=_name, reverse=True)
            pending += below


def _name(directory: Directory) -> bytes:
    return directory.name


def _missing(name: bytes, target: bytes) -> LayerError:
    return LayerError(f"{shown(name)} is a hard link to {shown(target)}, which is not in the layer")
