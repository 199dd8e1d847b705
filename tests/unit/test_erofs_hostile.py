"""What hostile and odd layers become: replaced entries, links, whiteouts, and what is refused."""

from __future__ import annotations

import io
import random
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_tars import (
    END,
    UUID,
    directory,
    hard_link,
    image_of,
    member,
    padded,
    pax_header,
    raw_header,
    symlink,
    tar_of,
)

from wherry.images.erofs import LayerError, Limits, write_erofs

OPAQUE = {b"trusted.overlay.opaque": b"y"}


def paths(*members: tuple) -> list[bytes]:
    return sorted(image_of(tar_of(*members)).nodes)[1:]


def refused(*members: tuple) -> str:
    with pytest.raises(LayerError) as caught:
        image_of(tar_of(*members))
    return str(caught.value)


# Names.


def test_a_leading_slash_and_dots_are_dropped() -> None:
    assert paths(member("/a/./b//c"), member("./a/d"), member("//e")) == [
        b"a",
        b"a/b",
        b"a/b/c",
        b"a/d",
        b"e",
    ]


@pytest.mark.parametrize("name", ["../x", "a/../x", "a/..", "..", "/..", "../../etc/passwd"])
def test_dot_dot_is_refused_by_name(name: str) -> None:
    assert refused(member("a/x"), member(name)) == f"'{name}' has a '..' in its path"


def test_names_that_are_dots_otherwise_are_ordinary() -> None:
    assert paths(member("..."), member("..a"), member(".a")) == [b"...", b"..a", b".a"]


def test_names_over_255_bytes_are_refused() -> None:
    assert "component of more than 255 bytes" in refused(member("n" * 256))
    assert "component of more than 255 bytes" in refused(member("d/x"), member("d/" + "n" * 256))
    assert "component of more than 255 bytes" in refused(member("n" * 256 + "/x"))


def test_paths_over_4096_bytes_are_refused() -> None:
    assert "more than 4096 bytes" in refused(member("d/" * 2100 + "x"))


def test_the_root_can_only_be_a_directory() -> None:
    assert "layer's root" in refused(member("./", data=b"x"))
    assert "layer's root" in refused(symlink("/", "etc"))


def test_missing_parents_are_made() -> None:
    nodes = image_of(tar_of(member("a/b/c", uid=7, mtime=9))).nodes
    for path in (b"a", b"a/b"):
        assert (nodes[path].mode, nodes[path].uid, nodes[path].mtime) == (0o040755, 0, 0)


# Entries that meet.


def test_the_last_of_two_files_wins() -> None:
    nodes = image_of(tar_of(member("f", data=b"1"), member("f", data=b"22", mode=0o600))).nodes
    assert (nodes[b"f"].data, nodes[b"f"].mode) == (b"22", 0o100600)


def test_directories_merge_and_the_last_attributes_win() -> None:
    nodes = image_of(tar_of(directory("d"), member("d/f"), directory("d", mode=0o700))).nodes
    assert nodes[b"d"].mode == 0o040700
    assert b"d/f" in nodes


def test_a_file_replaces_a_directory_with_all_below_it() -> None:
    image = image_of(
        tar_of(member("d/e/f"), hard_link("h", "d/e/f"), member("d", data=b"file"), member("x"))
    )
    assert sorted(image.nodes) == [b"", b"d", b"h", b"x"]
    assert image.nodes[b"h"].nlink == 1


def test_a_directory_replaces_a_symlink_and_does_not_follow_it() -> None:
    assert paths(directory("t"), symlink("s", "t"), directory("s"), member("s/f")) == [
        b"s",
        b"s/f",
        b"t",
    ]


def test_a_symlink_replaces_a_directory() -> None:
    nodes = image_of(tar_of(member("d/f"), directory("t"), symlink("d", "t"), member("d/g"))).nodes
    assert sorted(nodes)[1:] == [b"d", b"t", b"t/g"]


def test_entries_below_a_symlink_go_where_it_points() -> None:
    assert paths(directory("usr/lib"), symlink("lib", "usr/lib"), member("lib/f")) == [
        b"lib",
        b"usr",
        b"usr/lib",
        b"usr/lib/f",
    ]


@pytest.mark.parametrize("target", ["/etc", "../../../etc", "../etc/./", "/../etc"])
def test_symlinks_never_lead_out_of_the_layer(target: str) -> None:
    assert b"etc/f" in paths(directory("d"), symlink("d/s", target), member("d/s/f"))


def test_a_dangling_symlink_s_target_is_made() -> None:
    assert paths(symlink("s", "a/b"), member("s/f")) == [b"a", b"a/b", b"a/b/f", b"s"]


def test_a_loop_of_symlinks_is_refused() -> None:
    message = refused(symlink("a", "b"), symlink("b", "a"), member("a/f"))
    assert message == "'a/f' lies below a loop of symbolic links"
    assert "loop" in refused(symlink("a", "a/a"), member("a/f"))


def test_entries_below_a_file_are_refused() -> None:
    assert refused(member("d/f"), member("d/f/g/h")) == (
        "'d/f/g/h' lies below 'd/f', which is not a directory"
    )
    assert "not a directory" in refused(member("f"), symlink("s", "f"), member("s/g"))


# Hard links.


def test_hard_links_share_an_inode_and_count() -> None:
    nodes = image_of(
        tar_of(member("a", data=b"x"), hard_link("b", "/a"), hard_link("d/c", "./b"))
    ).nodes
    assert nodes[b"a"] is nodes[b"b"] is nodes[b"d/c"]
    assert nodes[b"a"].nlink == 3


def test_hard_links_to_symlinks_and_devices() -> None:
    nodes = image_of(
        tar_of(
            symlink("s", "x"),
            hard_link("s2", "s"),
            member("p", tarfile.FIFOTYPE),
            hard_link("p2", "p"),
        )
    ).nodes
    assert nodes[b"s2"].data == b"x"
    assert nodes[b"p2"].nlink == 2


def test_a_hard_link_to_itself_changes_nothing() -> None:
    nodes = image_of(tar_of(member("a", data=b"x"), hard_link("a", "a"))).nodes
    assert (nodes[b"a"].data, nodes[b"a"].nlink) == (b"x", 1)


def test_a_hard_link_into_the_directory_that_it_replaces() -> None:
    nodes = image_of(tar_of(member("d/f", data=b"x"), hard_link("d", "d/f"))).nodes
    assert (nodes[b"d"].data, nodes[b"d"].nlink) == (b"x", 1)


def test_replaced_names_of_a_hard_link_count_down() -> None:
    nodes = image_of(
        tar_of(member("a"), hard_link("b", "a"), hard_link("c", "a"), member("a"), member("b"))
    ).nodes
    assert [nodes[path].nlink for path in (b"a", b"b", b"c")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing", "'l' is a hard link to 'nothing', which is not in the layer"),
        ("no/thing", "which is not in the layer"),
        ("gone", "which is not in the layer"),
        ("../etc/passwd", "has a '..' in its path"),
        ("d", "hard link to a directory"),
        ("/", "hard link to the layer's root"),
        ("f/x", "not a directory"),
    ],
)
def test_hard_links_to_elsewhere_are_refused(target: str, message: str) -> None:
    assert message in refused(
        directory("d"), member("f"), member(".wh.gone"), hard_link("l", target)
    )


# Whiteouts.


def test_whiteouts_become_0_0_devices_of_one_inode() -> None:
    nodes = image_of(tar_of(member("a/.wh.x"), member("a/.wh.y"), member(".wh.z"))).nodes
    assert sorted(nodes)[1:] == [b"a", b"a/x", b"a/y", b"z"]
    assert nodes[b"a/x"] is nodes[b"a/y"] is nodes[b"z"]
    assert nodes[b"z"].is_whiteout
    assert nodes[b"z"].nlink == 3


def test_opaque_markers_become_an_xattr() -> None:
    nodes = image_of(tar_of(member("a/f"), member("a/.wh..wh..opq"), directory("a"))).nodes
    assert nodes[b"a"].xattrs == OPAQUE
    assert sorted(nodes)[1:] == [b"a", b"a/f"]


def test_an_opaque_marker_at_the_root_is_reported() -> None:
    out = io.BytesIO()
    info = write_erofs(io.BytesIO(tar_of(member(".wh..wh..opq"))), out, uuid=UUID)
    assert info.opaque_root


@pytest.mark.parametrize("order", [0, 1])
def test_a_file_and_its_whiteout_in_one_layer_are_the_file(order: int) -> None:
    both = [member("f", data=b"x"), member(".wh.f")]
    nodes = image_of(tar_of(*(both[::-1] if order else both))).nodes
    assert nodes[b"f"].data == b"x"


@pytest.mark.parametrize("order", [0, 1])
def test_a_directory_and_its_whiteout_in_one_layer_are_an_opaque_directory(order: int) -> None:
    both = [member("d/f"), member(".wh.d")]
    nodes = image_of(tar_of(*(both[::-1] if order else both))).nodes
    assert nodes[b"d"].xattrs == OPAQUE
    assert b"d/f" in nodes


def test_whiteouts_of_nothing_are_refused() -> None:
    for name in (".wh.", "d/.wh.", ".wh..", ".wh...", "d/.wh.../"):
        assert "whiteout of nothing" in refused(member(name))


def test_whiteouts_in_the_middle_of_a_path_are_refused() -> None:
    assert "lies below a whiteout" in refused(member("a/.wh.b/c"))
    assert "has a '..' in its path" in refused(member("../.wh.b"))


def test_names_with_whiteout_letters_elsewhere_are_ordinary() -> None:
    assert paths(member("a.wh.b"), member("x.wh..wh.y/z")) == [
        b"a.wh.b",
        b"x.wh..wh.y",
        b"x.wh..wh.y/z",
    ]


def test_aufs_bookkeeping_is_passed_over() -> None:
    assert paths(
        directory(".wh..wh.plnk"),
        member(".wh..wh.plnk/1.2", data=b"x"),
        member(".wh..wh.aufs"),
        member("f"),
    ) == [b"f"]


# Things that only overlayfs may mean.


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_0_0_devices_are_refused(kind: bytes) -> None:
    assert "'dev/x' is a 0/0 device" in refused(member("dev/x", kind, devmajor=0, devminor=0))


def test_devices_beyond_linux_are_refused() -> None:
    assert "out of range" in refused(member("x", tarfile.CHRTYPE, devmajor=4096, devminor=0))
    assert "out of range" in refused(member("x", tarfile.BLKTYPE, devmajor=0, devminor=1 << 20))


@pytest.mark.parametrize(
    "fields", [{"uid": 0xFFFFFFFF}, {"gid": 1 << 32}, {"mtime": 1 << 63}, {"mtime": -(1 << 63) - 1}]
)
@pytest.mark.parametrize("make", [member, directory])
def test_owners_and_times_that_no_file_can_have(make, fields: dict[str, int]) -> None:
    info, data = make("x", **fields)
    tar = tar_of((info, data), format=tarfile.GNU_FORMAT)
    with pytest.raises(LayerError, match=r"'x/?' has an owner or a time"):
        image_of(tar)


def test_symlinks_need_a_target_that_linux_can_hold() -> None:
    assert "target of 0 bytes" in refused(symlink("s", ""))
    assert "target of 4096 bytes" in refused(symlink("s", "t" * 4096))
    assert paths(symlink("s", "t" * 4095)) == [b"s"]


@pytest.mark.parametrize(
    ("name", "value"),
    [(b"user." + b"n" * 256, b""), (b"user.v", b"v" * 65536)],
)
@pytest.mark.parametrize("kind", [b"0", b"5"])
def test_xattrs_that_cannot_be_represented_name_the_entry(
    name: bytes, value: bytes, kind: bytes
) -> None:
    tar = pax_header((b"SCHILY.xattr." + name, value)) + raw_header(b"f", kind) + END
    with pytest.raises(LayerError, match=r"'f': the extended attribute .* is too long"):
        image_of(tar)


def test_too_many_xattrs_name_the_entry() -> None:
    records = [(b"SCHILY.xattr.user.%d" % i, b"v" * 60_000) for i in range(6)]
    tar = pax_header(*records) + raw_header(b"f") + END
    with pytest.raises(LayerError, match="'f': its extended attributes are too long together"):
        image_of(tar)


def test_the_root_s_xattrs_have_less_room() -> None:
    for size, fits in ((2700, True), (3000, False)):
        header = pax_header((b"SCHILY.xattr.user.a", b"v" * size))
        tar = header + raw_header(b"./", b"5") + raw_header(b"f" * 99) + END
        if fits:
            assert len(image_of(tar).nodes[b""].xattrs[b"user.a"]) == size
        else:
            with pytest.raises(LayerError, match="layer's root"):
                image_of(tar)


def test_a_bomb_of_holes_costs_nothing_and_a_larger_one_is_refused() -> None:
    for exponent in (40, 50, 62):
        header = pax_header(
            (b"GNU.sparse.size", b"%d" % (1 << exponent)), (b"GNU.sparse.map", b"0,0")
        )
        out = io.BytesIO()
        tar = header + raw_header(b"f") + END
        if exponent < 62:
            assert write_erofs(io.BytesIO(tar), out, uuid=UUID).size < 2 << 20
        else:
            with pytest.raises(LayerError, match="too large"):
                write_erofs(io.BytesIO(tar), out, uuid=UUID)


def test_xattrs_of_directories_count_against_memory() -> None:
    header = pax_header((b"SCHILY.xattr.user.a", b"v" * 60_000))
    tar = b"".join(header + raw_header(b"d%d/" % i, b"5") for i in range(10)) + END
    image_of(tar)
    with pytest.raises(LayerError, match="more than 500000 bytes of memory"):
        image_of(tar, Limits(tree_bytes=500_000))


def test_a_chunk_of_a_bomb_counts_against_the_image_s_limit() -> None:
    header = pax_header((b"GNU.sparse.size", b"%d" % (1 << 54)), (b"GNU.sparse.map", b"0,512"))
    tar = header + raw_header(b"f", size=512) + bytes(512) + END
    with pytest.raises(LayerError, match="larger than 1048576 bytes"):
        image_of(tar, Limits(image_bytes=1 << 20))


# Noise.

SEED = tar_of(
    directory("d", pax_headers={"mtime": "1.5", "SCHILY.xattr.user.a": "b"}),
    member("d/f", data=b"x" * 5000),
    member("d/" + "n" * 200, data=b"y" * 300),
    symlink("s", "d"),
    hard_link("h", "d/f"),
    member("s/.wh.gone"),
    member("s/.wh..wh..opq"),
    member("dev", tarfile.CHRTYPE, devmajor=1, devminor=3),
).rstrip(b"\0") + bytes(1024)
SMALL = Limits(
    entries=1000, tree_bytes=1 << 19, depth=64, header_bytes=1 << 16, image_bytes=1 << 24
)


def fixed(data: bytes) -> bytes:
    """The tar with right checksums, so that mutations reach what stands behind them."""
    blocks = bytearray(data)
    for at in range(0, len(blocks) - 511, 512):
        if blocks[at + 257 : at + 262] == b"ustar":
            blocks[at + 148 : at + 156] = b" " * 8
            blocks[at + 148 : at + 156] = b"%06o\0 " % sum(blocks[at : at + 512])
    return bytes(blocks)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 30), st.booleans())
def test_mutated_layers_are_read_or_refused_and_nothing_else(
    seed: int, count: int, repair: bool
) -> None:
    chance = random.Random(seed)
    data = bytearray(SEED)
    for _ in range(count):
        at = chance.randrange(len(data))
        choice = chance.randrange(4)
        if choice == 0:
            data[at] = chance.randrange(256)
        elif choice == 1:
            data[at] = chance.choice(b"0123456789./\0 =\n\xff\x80")
        elif choice == 2:
            block = at - at % 512
            other = chance.randrange(len(data)) // 512 * 512
            data[block : block + 512] = data[other : other + 512]
        else:
            del data[at - at % 512 : at - at % 512 + 512]
            data += bytes(512)
    tar = fixed(bytes(data)) if repair else bytes(data)
    try:
        image_of(tar, SMALL)
    except LayerError as error:
        assert "\n" not in str(error)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=2000))
def test_arbitrary_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        image_of(data, SMALL)
    except LayerError as error:
        assert "\n" not in str(error)


part = st.sampled_from(["a", "b", "c", "d"])
path = st.lists(part, min_size=1, max_size=3).map("/".join)
operation = st.one_of(
    st.tuples(st.just("file"), path),
    st.tuples(st.just("dir"), path),
    st.tuples(st.just("symlink"), path, path),
    st.tuples(st.just("link"), path, path),
    st.tuples(st.just("whiteout"), path),
    st.tuples(st.just("opaque"), path),
)


def made_by(kind: str, name: str, target: str = "") -> tuple:
    if kind == "dir":
        return directory(name)
    if kind == "symlink":
        return symlink(name, target)
    if kind == "link":
        return hard_link(name, target)
    if kind == "whiteout":
        parent, slash, base = name.rpartition("/")
        return member(f"{parent}{slash}.wh.{base}")
    if kind == "opaque":
        return member(f"{name}/.wh..wh..opq")
    return member(name, data=name.encode() * 100)


@settings(max_examples=150, deadline=None)
@given(st.lists(operation, max_size=25))
def test_any_order_of_entries_gives_a_consistent_image(operations: list[tuple]) -> None:
    """The reader checks links, counts, order and blocks; entries that are refused are left out."""
    members: list[tuple] = []
    for kind, name, *target in operations:
        made = made_by(kind, name, *target)
        try:
            image_of(tar_of(*members, made))
        except LayerError:
            continue
        members.append(made)
    image_of(tar_of(*members))


def test_padding_after_the_last_file_may_be_anything() -> None:
    tar = raw_header(b"f", size=3) + padded(b"abc") + END + b"\xff" * 5000
    assert image_of(tar).nodes[b"f"].data == b"abc"
