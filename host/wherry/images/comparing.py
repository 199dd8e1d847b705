"""`image diff`: the paths in which two images' merged trees differ, and how.

Times are not compared: two builds of the same thing differ in all of them.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.images.erofs.reader import ErofsImage, Inode
from wherry.images.exploring import kind_of, shown_path
from wherry.images.merged import Node, merge, read_layer, walk

HASHED_MAX = 64 << 30
"""Files larger than a layer may be (with holes they can be) are compared by size alone."""


@dataclass(frozen=True, slots=True)
class Side:
    """A path in one of the images.

    Attributes:
        mode: permission bits. size: of a regular file. digest: of its contents; "" when not known.
        target: of a symlink. device: of a device, as `MAJOR:MINOR`.
    """

    kind: str
    mode: int
    uid: int
    gid: int
    size: int = 0
    digest: str = ""
    target: str = ""
    device: str = ""

    def as_json(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "type": self.kind,
            "mode": f"{self.mode:04o}",
            "uid": self.uid,
            "gid": self.gid,
        }
        if self.kind == "file":
            facts |= {"size": self.size, "digest": self.digest}
        if self.target:
            facts["target"] = self.target
        if self.device:
            facts["device"] = self.device
        return facts


@dataclass(frozen=True, slots=True)
class Difference:
    """A path that differs. `a`, `b`: None where it does not exist."""

    path: str
    a: Side | None
    b: Side | None

    @property
    def change(self) -> str:
        """From `a` to `b`: added, removed or changed."""
        return "added" if self.a is None else "removed" if self.b is None else "changed"

    @property
    def differs(self) -> list[str]:
        """What is not the same: type, mode, owner, size, content, target, device."""
        a, b = self.a, self.b
        if a is None or b is None:
            return []
        parts = {
            "type": a.kind != b.kind,
            "mode": a.mode != b.mode,
            "owner": (a.uid, a.gid) != (b.uid, b.gid),
            "size": a.size != b.size,
            "content": a.digest != b.digest,
            "target": a.target != b.target,
            "device": a.device != b.device,
        }
        return [name for name, is_so in parts.items() if is_so]

    def as_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "change": self.change,
            "differs": self.differs,
            "a": self.a.as_json() if self.a else None,
            "b": self.b.as_json() if self.b else None,
        }


class MergedImage:
    """An image's merged tree. `layers`: (diffID, image), lowest first."""

    def __init__(self, layers: Sequence[tuple[str, ErofsImage]]) -> None:
        self._layers = layers
        self.root: Node | None = None
        for number, (_, image) in enumerate(layers):
            layer = read_layer(image, number)
            if self.root is None:
                self.root = Node(layer.inode, number)
            merge(self.root, layer)

    def identity(self, node: Node) -> tuple[str, int]:
        """What two names of one file have in common, also in two images."""
        return self._layers[node.layer][0], node.inode.nid

    def side(self, node: Node, *, hashed: bool) -> Side:
        inode = node.inode
        image = self._layers[node.layer][1]
        device = ""
        if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
            major, minor = (
                (inode.rdev >> 8) & 0xFFF,
                (inode.rdev & 0xFF) | (inode.rdev >> 12 & ~0xFF),
            )
            device = f"{major}:{minor}"
        is_link = stat.S_ISLNK(inode.mode)
        return Side(
            kind_of(inode),
            stat.S_IMODE(inode.mode),
            inode.uid,
            inode.gid,
            inode.size if inode.is_regular else 0,
            _digest(image, inode) if hashed and inode.is_regular else "",
            image.target(inode).decode("utf-8", "backslashreplace") if is_link else "",
            device,
        )


def compare(a: MergedImage, b: MergedImage) -> Iterator[Difference]:
    """What differs, in the order of paths, parents first.

    Raises:
        ErofsError: a layer is damaged.
    """
    if a.root is None or b.root is None:
        for other, node in ((a, a.root), (b, b.root)):
            for path, found in walk(node) if node else ():
                side = other.side(found, hashed=True)
                yield Difference(
                    shown_path(path), side if other is a else None, side if other is b else None
                )
        return
    pending = [(b"", a.root, b.root)]
    while pending:
        prefix, left, right = pending.pop()
        below = []
        ours, theirs = left.children or {}, right.children or {}
        for name in sorted(ours.keys() | theirs.keys()):
            path = prefix + name
            one, other_one = ours.get(name), theirs.get(name)
            difference = _difference(path, a, one, b, other_one)
            if difference is not None:
                yield difference
            if (
                one is None
                or other_one is None
                or one.children is None
                or other_one.children is None
            ):
                yield from _whole(path, a, one, b, other_one)
            else:
                below.append((path + b"/", one, other_one))
        pending += reversed(below)


def _difference(
    path: bytes, a: MergedImage, one: Node | None, b: MergedImage, other: Node | None
) -> Difference | None:
    if one is None or other is None:
        return Difference(
            shown_path(path),
            a.side(one, hashed=True) if one else None,
            b.side(other, hashed=True) if other else None,
        )
    if a.identity(one) == b.identity(other):
        return None
    hashed = one.inode.is_regular or other.inode.is_regular
    found = Difference(shown_path(path), a.side(one, hashed=hashed), b.side(other, hashed=hashed))
    return found if found.differs else None


def _whole(
    path: bytes, a: MergedImage, one: Node | None, b: MergedImage, other: Node | None
) -> Iterator[Difference]:
    """What lies below a path that is a directory on one side at most."""
    for inner, node in walk(one, path + b"/") if one else ():
        yield Difference(shown_path(inner), a.side(node, hashed=True), None)
    for inner, node in walk(other, path + b"/") if other else ():
        yield Difference(shown_path(inner), None, b.side(node, hashed=True))


def _digest(image: ErofsImage, inode: Inode) -> str:
    if inode.size > HASHED_MAX:
        return ""
    content = hashlib.sha256()
    for piece in image.contents(inode):
        content.update(piece)
    return f"sha256:{content.hexdigest()}"
