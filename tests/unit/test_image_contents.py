"""What is in images: our EROFS reader against an independent one, merged trees, explore, diff."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import erofs_reader
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_tars import UUID, directory, hard_link, member, symlink, tar_of

from wherry.errors import WherryError
from wherry.images.comparing import MergedImage, compare
from wherry.images.erofs import write_erofs
from wherry.images.erofs.reader import ErofsImage
from wherry.images.exploring import Exploration, explore
from wherry.images.merged import Node, merge, read_layer, walk

OPAQUE = b"trusted.overlay.opaque"


def raw_image(*members: tuple) -> bytes:
    out = io.BytesIO()
    write_erofs(io.BytesIO(tar_of(*members)), out, uuid=UUID)
    return out.getvalue()


def opened(raw: bytes) -> ErofsImage:
    return ErofsImage(io.BytesIO(raw))


def whiteout(name: str) -> tuple:
    head, _, base = name.rpartition("/")
    return member(f"{head}/.wh.{base}" if head else f".wh.{base}")


def opaque(name: str) -> tuple:
    return member(f"{name}/.wh..wh..opq")


# The reader.


def sample() -> bytes:
    return raw_image(
        directory("etc"),
        member("etc/small", data=b"x" * 100, mode=0o4755, uid=7, gid=70000, mtime=1_600_000_000),
        member("etc/large", data=bytes(range(256)) * 100),
        member("exact", data=b"y" * 8192),
        symlink("link", "etc/small"),
        hard_link("again", "etc/large"),
        member("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("disk", tarfile.BLKTYPE, devmajor=259, devminor=70000),
        member("pipe", tarfile.FIFOTYPE),
        whiteout("gone"),
        *(member(f"many/{n:04}", data=b"") for n in range(600)),
        member("x", pax_headers={"SCHILY.xattr.user.a": "1", "SCHILY.xattr.security.b": "22"}),
    )


def assert_same_as_independent(raw: bytes) -> None:
    image = opened(raw)
    expected = erofs_reader.Image(raw)
    root = read_layer(image, 0)
    found = {b"": root} | dict(walk(root))
    assert found.keys() == expected.nodes.keys()
    for path, node in found.items():
        inode, other = node.inode, expected.nodes[path]
        assert (inode.mode, inode.uid, inode.gid) == (other.mode, other.uid, other.gid)
        assert (inode.mtime, inode.mtime_ns, inode.links) == (
            other.mtime,
            other.mtime_ns,
            other.nlink,
        )
        assert image.xattrs(inode) == other.xattrs
        assert inode.rdev == other.device
        assert inode.is_whiteout == other.is_whiteout
        if not inode.is_directory:
            assert b"".join(image.contents(inode)) == other.data


def test_the_reader_sees_what_an_independent_one_sees() -> None:
    assert_same_as_independent(sample())


names = st.sampled_from(["a", "b", "c", "d/a", "d/b", "d/e/f", "e", "e/g"])
entries = st.lists(
    st.one_of(
        st.builds(lambda n, data: member(n, data=data), names, st.binary(max_size=5000)),
        st.builds(lambda n, mode: directory(n, mode=mode), names, st.integers(0, 0o777)),
        st.builds(lambda n, target: symlink(n, f"/{target}"), names, names),
        st.builds(whiteout, names),
        st.builds(opaque, st.sampled_from(["a", "d", "d/e", "e"])),
    ),
    max_size=8,
)


def image_or_none(members: list[tuple]) -> bytes | None:
    try:
        return raw_image(*members)
    except WherryError:  # such as something below a file
        return None


@settings(deadline=None, max_examples=50)
@given(entries)
def test_the_reader_agrees_on_random_layers(members: list[tuple]) -> None:
    raw = image_or_none(members)
    if raw is not None:
        assert_same_as_independent(raw)


@settings(deadline=None, max_examples=70)
@given(st.integers(1024, 60_000), st.binary(min_size=1, max_size=16), st.booleans())
def test_a_damaged_image_is_an_error_or_harmless(at: int, damage: bytes, cut: bool) -> None:
    raw = bytearray(sample())
    at = min(at, len(raw) - 1)
    if cut:
        del raw[at:]
    else:
        raw[at : at + len(damage)] = damage
    try:
        image = opened(bytes(raw))
        for _, node in walk(read_layer(image, 0)):
            if not node.inode.is_directory and node.inode.size < 1 << 20:
                for _ in image.contents(node.inode):
                    pass
    except WherryError as error:
        assert "damaged" in error.message


def test_a_directory_that_contains_itself_is_an_error() -> None:
    raw = bytearray(raw_image(directory("a"), directory("a/b")))
    image = opened(bytes(raw))
    tree = read_layer(image, 0)
    assert tree.children is not None
    outer = tree.children[b"a"]
    assert outer.children is not None
    inner_nid = outer.children[b"b"].inode.nid
    place = bytes(raw).find(inner_nid.to_bytes(8, "little"), outer.inode.nid * 32)
    raw[place : place + 8] = outer.inode.nid.to_bytes(8, "little")
    with pytest.raises(WherryError, match="stands twice"):
        read_layer(opened(bytes(raw)), 0)


# Merged trees.


def model(layers: list[erofs_reader.Image]) -> dict[bytes, tuple[int, erofs_reader.Node]]:
    """What overlayfs shows, by paths instead of trees."""
    merged: dict[bytes, tuple[int, erofs_reader.Node]] = {}

    def drop_below(path: bytes) -> None:
        prefix = path + b"/" if path else b""
        for known in [it for it in merged if it.startswith(prefix) and it != path]:
            del merged[known]

    for number, layer in enumerate(layers):
        for path, node in layer.nodes.items():
            if OPAQUE in node.xattrs:
                drop_below(path)
        for path, node in sorted(layer.nodes.items(), key=lambda it: it[0].split(b"/")):
            if node.is_whiteout:
                drop_below(path)
                merged.pop(path, None)
                continue
            old = merged.get(path)
            if old and (old[1].kind != 0o040000 or node.kind != 0o040000):
                drop_below(path)
            merged[path] = (number, node)
    merged.pop(b"", None)
    return merged


def merged_tree(raws: list[bytes]) -> Node:
    root: Node | None = None
    for number, raw in enumerate(raws):
        layer = read_layer(opened(raw), number)
        root = root or Node(layer.inode, number)
        merge(root, layer)
    assert root is not None
    return root


@settings(deadline=None, max_examples=70)
@given(st.lists(entries, min_size=1, max_size=4))
def test_merging_shows_what_overlayfs_shows(stack: list[list[tuple]]) -> None:
    raws = [raw for members in stack if (raw := image_or_none(members)) is not None]
    if not raws:
        return
    expected = model([erofs_reader.Image(raw) for raw in raws])
    found = {path: (node.layer, node.inode.nid) for path, node in walk(merged_tree(raws))}
    assert found == {path: (layer, node.nid) for path, (layer, node) in expected.items()}


# Explore.


def explored(*layers: tuple[tuple, ...]) -> Exploration:
    return explore(
        [(f"sha256:{n}", f"step {n}", opened(raw_image(*it))) for n, it in enumerate(layers)]
    )


def test_explore_counts_what_is_added_changed_removed_and_wasted() -> None:
    found = explored(
        (directory("etc"), member("etc/a", data=b"1" * 100), member("etc/b", data=b"2" * 10)),
        (member("etc/a", data=b"3" * 5), whiteout("etc/b")),
    )
    first, second = found.layers
    assert [path for path, *_ in first.added] == ["/etc", "/etc/a", "/etc/b"]
    assert (first.size, first.wasted) == (110, 110)
    assert second.changed == [("/etc/a", "file", 5)]
    assert second.removed == [("/etc/b", "file", 10)]
    assert found.worst == (("/etc/a", 100, 1), ("/etc/b", 10, 1))
    assert found.as_json(files=False)["efficiency"] == round(5 / 115, 4)


def test_a_directory_that_is_removed_wastes_all_below_it() -> None:
    found = explored(
        (member("d/a", data=b"1" * 100), member("d/e/b", data=b"1" * 10)), (whiteout("d"),)
    )
    assert found.layers[0].wasted == 110
    assert [path for path, *_ in found.layers[1].removed] == ["/d", "/d/a", "/d/e", "/d/e/b"]


def test_an_opaque_directory_removes_what_it_does_not_bring_itself() -> None:
    found = explored(
        (member("d/a", data=b"1" * 7), member("d/b", data=b"1")),
        (directory("d"), opaque("d"), member("d/b", data=b"22")),
    )
    assert [path for path, *_ in found.layers[1].removed] == ["/d/a"]
    assert [path for path, *_ in found.layers[1].changed] == ["/d/b"]
    assert found.layers[0].wasted == 8


def test_a_hard_link_keeps_bytes_from_being_wasted() -> None:
    layers = (member("a", data=b"1" * 50), hard_link("b", "a"))
    assert explored(layers, (whiteout("a"),)).layers[0].wasted == 0
    assert explored(layers, (whiteout("a"), whiteout("b"))).layers[0].wasted == 50
    assert explored(layers).layers[0].size == 50


def test_a_directory_is_changed_only_when_its_mode_or_owner_is() -> None:
    same = explored((directory("d", mtime=1),), (directory("d", mtime=2),))
    assert same.layers[1].changed == []
    other = explored((directory("d"),), (directory("d", mode=0o700),))
    assert [path for path, *_ in other.layers[1].changed] == ["/d"]


@settings(deadline=None, max_examples=50)
@given(st.lists(entries, min_size=1, max_size=4))
def test_what_is_not_wasted_is_what_is_seen(stack: list[list[tuple]]) -> None:
    raws = [raw for members in stack if (raw := image_or_none(members)) is not None]
    if not raws:
        return
    found = explore([("", "", opened(raw)) for raw in raws])
    seen = {
        (node.layer, node.inode.nid): node.inode.size
        for _, node in walk(merged_tree(raws))
        if node.inode.is_regular
    }
    total = sum(layer.size for layer in found.layers)
    wasted = sum(layer.wasted for layer in found.layers)
    # A layer's own whiteouts and markers bring no bytes, so the rest is visible.
    assert total - wasted == sum(seen.values())


# Diff.


def image_of(*layers: tuple[tuple, ...]) -> MergedImage:
    found = []
    for members in layers:
        raw = raw_image(*members)
        found.append((f"sha256:{hash(raw)}", opened(raw)))
    return MergedImage(found)


def differences(a: MergedImage, b: MergedImage) -> dict[str, Any]:
    return {it.path: (it.change, *it.differs) for it in compare(a, b)}


BASE = (
    directory("etc"),
    member("etc/same", data=b"1"),
    member("etc/content", data=b"1"),
    member("etc/longer", data=b"1"),
    member("etc/mode", data=b"1"),
    member("etc/owner", data=b"1"),
    member("etc/type", data=b"1"),
    symlink("link", "a"),
    member("dev", tarfile.CHRTYPE, devmajor=1, devminor=3),
    member("old/file", data=b"1"),
)


def test_diff_names_what_differs() -> None:
    other = image_of(
        (
            directory("etc", mtime=99),
            member("etc/same", data=b"1", mtime=99),
            member("etc/content", data=b"2"),
            member("etc/longer", data=b"11"),
            member("etc/mode", data=b"1", mode=0o600),
            member("etc/owner", data=b"1", uid=5),
            symlink("etc/type", "x"),
            symlink("link", "b"),
            member("dev", tarfile.CHRTYPE, devmajor=1, devminor=5),
            member("new/file", data=b"1"),
        )
    )
    assert differences(image_of(BASE), other) == {
        "/dev": ("changed", "device"),
        "/etc/content": ("changed", "content"),
        "/etc/longer": ("changed", "size", "content"),
        "/etc/mode": ("changed", "mode"),
        "/etc/owner": ("changed", "owner"),
        "/etc/type": ("changed", "type", "mode", "size", "content", "target"),
        "/link": ("changed", "target"),
        "/new": ("added",),
        "/new/file": ("added",),
        "/old": ("removed",),
        "/old/file": ("removed",),
    }


def test_an_image_does_not_differ_from_itself_squashed() -> None:
    layered = image_of(BASE, (whiteout("old"), member("etc/content", data=b"2")))
    squashed = image_of(
        (
            *(it for it in BASE if not it[0].name.startswith(("old", "etc/content"))),
            member("etc/content", data=b"2"),
        )
    )
    assert differences(layered, squashed) == {}


def test_a_directory_in_the_place_of_a_file_shows_all_below_it() -> None:
    found = differences(
        image_of((member("a", data=b"1"),)), image_of((member("a/b/c", data=b"1"),))
    )
    assert {path: change for path, (change, *_) in found.items()} == {
        "/a": "changed",
        "/a/b": "added",
        "/a/b/c": "added",
    }


@settings(deadline=None, max_examples=30)
@given(st.lists(entries, min_size=1, max_size=3), st.lists(entries, min_size=1, max_size=3))
def test_diff_is_symmetric(one: list[list[tuple]], two: list[list[tuple]]) -> None:
    raws = [[raw for it in stack if (raw := image_or_none(it)) is not None] for stack in (one, two)]
    a, b = (MergedImage([(f"{hash(raw)}", opened(raw)) for raw in stack]) for stack in raws)
    there = {it.path: (it.a, it.b) for it in compare(a, b)}
    back = {it.path: (it.b, it.a) for it in compare(b, a)}
    assert there == back
    assert list(compare(a, a)) == []
