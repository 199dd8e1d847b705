"""The file tree of an image, as a value: what stands at which path, before it becomes an archive.

Pure: nothing here touches the disk, so the result is the same on Windows as on Linux. Paths are
absolute and normalised (`/usr/bin/nft`). The rule of adding is that a later file replaces an
earlier one, and that a directory never replaces what is there.
"""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import FormatError

_MAX_LINKS = 40
"""Symbolic links followed before we call it a loop; Linux's MAXSYMLINKS (include/linux/namei.h)."""


@dataclass(frozen=True, slots=True)
class Node:
    """One file. `mode` holds type and permissions as in `st_mode`; everything belongs to root.

    `data` is a regular file's content or a symbolic link's target; `device` is (major, minor).
    """

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


DIRECTORY = Node(stat.S_IFDIR | 0o755)


def regular(data: bytes, permissions: int = 0o644) -> Node:
    return Node(stat.S_IFREG | permissions, data)


def symlink(target: str) -> Node:
    return Node(stat.S_IFLNK | 0o777, target.encode())


def char_device(major: int, minor: int, permissions: int) -> Node:
    return Node(stat.S_IFCHR | permissions, device=(major, minor))


class Tree:
    """A mutable map from path to `Node`; iteration is sorted, parents before children."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {"/": DIRECTORY}

    def add(self, path: str, node: Node) -> None:
        """Put `node` at `path`, following symbolic links in the directories above it.

        Missing parents are made.

        Raises:
            FormatError: a parent is a file, or the path leaves the tree.
        """
        path = self._place(path)
        present = self._nodes.get(path)
        if node.is_dir and present is not None and (present.is_dir or present.is_link):
            return
        self._nodes[path] = node

    def add_file(self, path: str, data: bytes, permissions: int = 0o644) -> None:
        self.add(path, regular(data, permissions))

    def get(self, path: str) -> Node | None:
        return self._nodes.get(normal(path))

    def resolve(self, path: str) -> str | None:
        """The path after following every symbolic link, or None when nothing is there."""
        current = normal(path)
        for _ in range(_MAX_LINKS):
            current = self._place(current)
            node = self._nodes.get(current)
            if node is None or not node.is_link:
                return current if node is not None else None
            current = posixpath.join(posixpath.dirname(current), node.data.decode())
        return None

    def __contains__(self, path: str) -> bool:
        return normal(path) in self._nodes

    def __iter__(self) -> Iterator[tuple[str, Node]]:
        for path in sorted(self._nodes, key=lambda path: path.split("/")):
            yield path, self._nodes[path]

    def __len__(self) -> int:
        return len(self._nodes)

    def _place(self, path: str, depth: int = 0) -> str:
        """Where `path` really is: links in its parents followed, the parents made."""
        path = normal(path)
        if path == "/":
            return path
        if depth > _MAX_LINKS:
            raise FormatError(f"too many symbolic links on the way to {path}")
        parent = self._place(posixpath.dirname(path), depth + 1)
        node = self._nodes.setdefault(parent, DIRECTORY)
        if node.is_link:
            target = posixpath.join(posixpath.dirname(parent), node.data.decode())
            parent = self._place(target, depth + 1)
            node = self._nodes.setdefault(parent, DIRECTORY)
        if not node.is_dir:
            raise FormatError(f"{path} would stand below {parent}, which is not a directory")
        return posixpath.join(parent, posixpath.basename(path))


def normal(path: str) -> str:
    """`./usr//bin/` -> `/usr/bin`. `..` cannot climb above the root, as in a real root."""
    return posixpath.normpath("/" + path.lstrip("/"))
