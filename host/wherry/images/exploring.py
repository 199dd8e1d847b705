"""`image explore`: what each layer adds, changes and removes, and the bytes that later ones waste.

A file's bytes are wasted when a later layer replaces or removes it: they are stored and sent, and
no container sees them. Hard links count once; a file is gone when the last of its names is.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from wherry.images.erofs.reader import ErofsImage, Inode
from wherry.images.merged import Node, merge, read_layer

WORST = 20
"""Paths named as the most wasteful."""

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
}


@dataclass
class LayerReport:
    """A layer.

    Attributes:
        created_by: the command that made it.
        size: bytes of the files in it.
        wasted: of these, bytes that later layers replace or remove.
        added, changed, removed: (path, kind, bytes) of what it does to the layers below.
    """

    diff_id: str
    created_by: str
    size: int = 0
    wasted: int = 0
    added: list[tuple[str, str, int]] = field(default_factory=list)
    changed: list[tuple[str, str, int]] = field(default_factory=list)
    removed: list[tuple[str, str, int]] = field(default_factory=list)

    def as_json(self, *, files: bool) -> dict[str, Any]:
        """`files`: with the lists, not only their lengths."""
        facts: dict[str, Any] = {
            "diff_id": self.diff_id,
            "created_by": self.created_by,
            "size": self.size,
            "wasted": self.wasted,
        }
        for what, found in (
            ("added", self.added),
            ("changed", self.changed),
            ("removed", self.removed),
        ):
            facts[what] = len(found)
            if files:
                facts[f"{what}_files"] = [
                    {"path": path, "kind": kind, "size": size} for path, kind, size in found
                ]
        return facts


@dataclass(frozen=True, slots=True)
class Exploration:
    """An image. `worst`: (path, wasted bytes, times), the worst first."""

    layers: tuple[LayerReport, ...]
    worst: tuple[tuple[str, int, int], ...]

    def as_json(self, *, files: bool) -> dict[str, Any]:
        size = sum(layer.size for layer in self.layers)
        wasted = sum(layer.wasted for layer in self.layers)
        return {
            "size": size,
            "wasted": wasted,
            "efficiency": round(1 - wasted / size, 4) if size else 1.0,
            "layers": [layer.as_json(files=files) for layer in self.layers],
            "worst": [
                {"path": path, "wasted": wasted, "times": times}
                for path, wasted, times in self.worst
            ],
        }


def explore(layers: Sequence[tuple[str, str, ErofsImage]]) -> Exploration:
    """Look at all layers, lowest first: (diffID, command, image).

    Raises:
        ErofsError: one is damaged. InvalidInput: one has too many entries.
    """
    explorer = _Explorer()
    for diff_id, created_by, image in layers:
        explorer.add(LayerReport(diff_id, created_by), image)
    return explorer.result()


class _Explorer:
    def __init__(self) -> None:
        self._reports: list[LayerReport] = []
        self._merged: Node | None = None
        self._links: Counter[tuple[int, int]] = Counter()
        """(layer, nid) -> names that are visible."""
        self._wasted: Counter[bytes] = Counter()
        self._times: Counter[bytes] = Counter()

    def add(self, report: LayerReport, image: ErofsImage) -> None:
        self._reports.append(report)
        layer = read_layer(image, len(self._reports) - 1)
        report.size = size_of(layer)
        if self._merged is None:
            self._merged = Node(layer.inode, layer.layer)
        merge(self._merged, layer, self._observe)

    def result(self) -> Exploration:
        worst = [
            (shown_path(path), count, self._times[path])
            for path, count in self._wasted.most_common(WORST)
        ]
        return Exploration(tuple(self._reports), tuple(worst))

    def _observe(self, what: str, path: bytes, node: Node, old: Node | None) -> None:
        inode = node.inode
        report = self._reports[-1]
        size = inode.size if inode.is_regular else 0
        getattr(report, what).append((shown_path(path), kind_of(inode), size))
        if what == "removed":
            self._gone(path, node)
            return
        if old is not None:
            self._gone(path, old)
        if inode.is_regular:
            self._links[node.layer, inode.nid] += 1

    def _gone(self, path: bytes, node: Node) -> None:
        if not node.inode.is_regular:
            return
        key = (node.layer, node.inode.nid)
        self._links[key] -= 1
        if not self._links[key]:
            self._reports[node.layer].wasted += node.inode.size
            self._wasted[path] += node.inode.size
            self._times[path] += 1


def kind_of(inode: Inode) -> str:
    return _KINDS.get(stat.S_IFMT(inode.mode), "unknown")


def shown_path(path: bytes) -> str:
    """With a leading slash; what is not UTF-8 as `\\xNN`."""
    return "/" + path.decode("utf-8", "backslashreplace")


def size_of(layer: Node) -> int:
    """Bytes of the files in a layer's tree, hard links once."""
    sizes: dict[int, int] = {}
    pending = [layer]
    while pending:
        for child in (pending.pop().children or {}).values():
            if child.inode.is_regular:
                sizes[child.inode.nid] = child.inode.size
            elif child.children:
                pending.append(child)
    return sum(sizes.values())
