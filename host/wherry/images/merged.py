"""The tree that an image's layers add up to, with the layer that each file comes from.

As overlayfs shows it: an upper file replaces, a directory merges unless it is opaque, a whiteout
hides. Everything goes by explicit stacks: a layer may be a thousand directories deep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from wherry.errors import InvalidInput
from wherry.images.erofs.reader import DEPTH_MAX, ENTRIES_MAX, ErofsError, ErofsImage, Inode

OPAQUE = b"trusted.overlay.opaque"


class Node:
    """A name in a tree. `children`: of a directory; `layer`: the number of the layer it is from."""

    __slots__ = ("children", "inode", "layer", "opaque")

    def __init__(self, inode: Inode, layer: int) -> None:
        self.inode = inode
        self.layer = layer
        self.opaque = False
        self.children: dict[bytes, Node] | None = {} if inode.is_directory else None


Observer = Callable[[str, bytes, Node, Node | None], None]
"""observer(what, path, node, old): "added" (node), "changed" (node, the one that it replaces),
"removed" (node is what went), for directories too. Paths have no leading slash."""


def read_layer(image: ErofsImage, layer: int) -> Node:
    """A layer's own tree, whiteouts as they are.

    Raises:
        ErofsError: it is damaged. InvalidInput: it has too many entries.
    """
    root = Node(image.root, layer)
    root.opaque = OPAQUE in image.xattrs(root.inode)
    seen = {root.inode.nid}
    count = 0
    pending = [(root, 0)]
    while pending:
        node, depth = pending.pop()
        assert node.children is not None
        for name, nid in image.entries(node.inode):
            count += 1
            child = Node(image.inode(nid), layer)
            node.children[name] = child
            if child.children is None:
                continue
            if nid in seen or depth >= DEPTH_MAX:
                raise ErofsError(f"layer {layer} is damaged: directory {nid} stands twice")
            seen.add(nid)
            child.opaque = child.inode.body > 0 and OPAQUE in image.xattrs(child.inode)
            pending.append((child, depth + 1))
        if count > ENTRIES_MAX:
            raise InvalidInput(f"layer {layer} has more than {ENTRIES_MAX} entries")
    return root


def merge(lower: Node, upper: Node, observe: Observer | None = None) -> None:
    """Put a layer's tree on top of a merged one, which becomes what overlayfs shows."""
    watch = observe or _unobserved
    lower.inode, lower.layer = upper.inode, upper.layer
    pending = [(lower, upper, b"", upper.opaque)]
    while pending:
        below, above, path, opaque = pending.pop()
        assert below.children is not None and above.children is not None
        if opaque:
            for name in [name for name in below.children if name not in above.children]:
                _report("removed", path + name, below.children.pop(name), watch)
        for name, node in above.children.items():
            where = path + name
            old = below.children.get(name)
            if node.inode.is_whiteout:
                if old is not None:
                    _report("removed", where, below.children.pop(name), watch)
            elif old is None:
                fresh = _without_whiteouts(node)
                below.children[name] = fresh
                _report("added", where, fresh, watch)
            elif old.children is not None and node.children is not None:
                if _attributes(old.inode) != _attributes(node.inode):
                    watch("changed", where, node, old)
                old.inode, old.layer = node.inode, node.layer
                pending.append((old, node, where + b"/", opaque or node.opaque))
            else:
                fresh = _without_whiteouts(node)
                below.children[name] = fresh
                watch("changed", where, fresh, old)
                for inner, child in walk(old, where + b"/"):
                    watch("removed", inner, child, None)
                for inner, child in walk(fresh, where + b"/"):
                    watch("added", inner, child, None)


def walk(node: Node, prefix: bytes = b"") -> Iterator[tuple[bytes, Node]]:
    """Everything below a node, with its path behind `prefix`, parents first, sorted."""
    pending = [(prefix, node)]
    while pending:
        path, current = pending.pop()
        below = sorted((current.children or {}).items())
        for name, child in below:
            yield path + name, child
        pending += [
            (path + name + b"/", child) for name, child in reversed(below) if child.children
        ]


def _report(what: str, path: bytes, node: Node, watch: Observer) -> None:
    watch(what, path, node, None)
    for inner, child in walk(node, path + b"/"):
        watch(what, inner, child, None)


def _without_whiteouts(node: Node) -> Node:
    """A tree that stands where there was nothing: its whiteouts hide nothing and do not show."""
    pending = [node]
    while pending:
        children = pending.pop().children
        if not children:
            continue
        for name in [name for name, child in children.items() if child.inode.is_whiteout]:
            del children[name]
        pending += [child for child in children.values() if child.children]
    return node


def _attributes(inode: Inode) -> tuple[int, int, int]:
    return inode.mode, inode.uid, inode.gid


def _unobserved(_what: str, _path: bytes, _node: Node, _old: Node | None) -> None:
    pass
