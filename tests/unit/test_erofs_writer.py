"""What `write_erofs` makes of a layer, read back by a reader that shares no code with it."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
import uuid
from pathlib import Path

import pytest
from erofs_reader import Image
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_tars import (
    END,
    UUID,
    Drip,
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

from wherry.images.erofs import FORMAT, LayerError, Limits, layer_uuid, layout, write_erofs

DIR, REG, LNK, CHR, BLK, FIFO = 0o040000, 0o100000, 0o120000, 0o020000, 0o060000, 0o010000


def test_an_empty_layer_is_an_empty_root() -> None:
    image = image_of(END)
    assert list(image.nodes) == [b""]
    root = image.nodes[b""]
    assert (root.mode, root.uid, root.gid, root.mtime) == (DIR | 0o755, 0, 0, 0)
    assert len(image.raw) == 4096
    assert image.uuid == UUID


def test_every_kind_of_file() -> None:
    image = image_of(
        tar_of(
            directory("./", mode=0o700, uid=1, gid=2, mtime=5),
            directory("./d", mode=0o1777),
            member("./d/f", data=b"hello", mode=0o4755, uid=70000, gid=1 << 31, mtime=-7),
            symlink("./d/s", "../x/" + "y" * 300),
            hard_link("./h", "./d/f"),
            member("c", tarfile.CHRTYPE, devmajor=5, devminor=300, mode=0o666),
            member("b", tarfile.BLKTYPE, devmajor=4095, devminor=0),
            member("p", tarfile.FIFOTYPE, mode=0o600),
        )
    )
    nodes = image.nodes
    assert sorted(nodes) == [b"", b"b", b"c", b"d", b"d/f", b"d/s", b"h", b"p"]
    root = nodes[b""]
    assert (root.mode, root.uid, root.gid, root.mtime, root.nlink) == (DIR | 0o700, 1, 2, 5, 3)
    assert nodes[b"d"].mode == DIR | 0o1777
    file = nodes[b"d/f"]
    assert file is nodes[b"h"]
    assert (file.mode, file.uid, file.gid, file.mtime) == (REG | 0o4755, 70000, 1 << 31, -7)
    assert (file.data, file.nlink) == (b"hello", 2)
    assert (nodes[b"d/s"].mode, nodes[b"d/s"].data) == (LNK | 0o777, b"../x/" + b"y" * 300)
    assert (nodes[b"c"].mode, nodes[b"c"].device) == (CHR | 0o666, 44 | 5 << 8 | 1 << 20)
    assert (nodes[b"b"].kind, nodes[b"b"].device) == (BLK, 4095 << 8)
    assert nodes[b"p"].mode == FIFO | 0o600


@pytest.mark.parametrize(
    "size", [0, 1, 2015, 2016, 2017, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 70_000, 3 << 20]
)
def test_contents_of_every_size(size: int) -> None:
    data = (hashlib.sha256(b"%d" % size).digest() * (size // 32 + 1))[:size]
    image = image_of(tar_of(member("a", data=data), member("b", data=data), member("c", data=b"c")))
    assert image.nodes[b"a"].data == image.nodes[b"b"].data == data
    assert image.nodes[b"c"].data == b"c"


def test_zeros_become_holes_of_the_image_file(tmp_path: Path) -> None:
    data = b"x" * 4096 + bytes(64 << 20)
    path = tmp_path / "image"
    with path.open("w+b") as out:
        info = write_erofs(io.BytesIO(tar_of(member("z", data=data))), out, uuid=UUID)
    status = path.stat()
    assert status.st_size == info.size == (64 << 20) + 3 * 4096
    if sys.platform == "linux":
        assert status.st_blocks * 512 < 4 << 20
    assert Image(path).nodes[b"z"].data == data


def test_directories_of_many_blocks_are_sorted_and_whole() -> None:
    # "!" and "-" sort before "." and "..", which must be in order too.
    names = [f"{c}{'n' * (i % 200)}{i}" for i in range(3000) for c in "!-z"]
    image = image_of(tar_of(*(member(f"d/{name}") for name in reversed(names))))
    assert len(image.nodes) == len(names) + 2
    assert image.nodes[b"d"].size > 50 * 4096


def test_names_of_255_bytes_of_any_kind() -> None:
    names = [bytes([b]) * 255 for b in (1, 0x20, 0x7F, 0x80, 0xFF)]
    image = image_of(tar_of(*(member(name.decode("utf-8", "surrogateescape")) for name in names)))
    assert sorted(image.nodes) == [b"", *names]


def test_mtimes_have_nanoseconds() -> None:
    image = image_of(tar_of(member("f", pax_headers={"mtime": "1700000000.123456789"})))
    assert (image.nodes[b"f"].mtime, image.nodes[b"f"].mtime_ns) == (1700000000, 123456789)


def test_xattrs_are_kept_but_not_those_that_steer_overlayfs() -> None:
    header = pax_header(
        *(
            (b"SCHILY.xattr." + name, value)
            for name, value in {
                b"security.capability": b"\1\0\0\2" + bytes(16),
                b"system.posix_acl_access": b"\2\0\0\0" + bytes(8),
                b"system.posix_acl_default": b"\2\0\0\0",
                b"user.note": b"",
                b"user.overlay": b"no prefix",
                b"user.overlay.opaque": b"y",
                b"trusted.overlay.redirect": b"/etc",
                b"trusted.x": b"y",
                b"com.apple.quarantine": b"macOS",
                b"system.nfs4_acl": b"?",
                b"user.": b"?",
            }.items()
        )
    )
    tar = header + raw_header(b"f", size=3) + padded(b"abc") + header + raw_header(b"d/", b"5")
    image = image_of(tar + header + raw_header(b"s", b"2", linkname=b"t") + END)
    for path in (b"f", b"d"):
        assert sorted(image.nodes[path].xattrs) == [
            b"security.capability",
            b"system.posix_acl_access",
            b"system.posix_acl_default",
            b"user.note",
            b"user.overlay",
        ]
    assert b"user.note" not in image.nodes[b"s"].xattrs
    assert image.nodes[b"f"].data == b"abc"
    assert image.nodes[b"f"].xattrs[b"security.capability"][:4] == b"\1\0\0\2"


def test_long_xattrs_push_contents_out_of_line() -> None:
    header = pax_header(
        (b"SCHILY.xattr.user.big", b"v" * 65535), (b"SCHILY.xattr.user.odd", b"w" * 4001)
    )
    tar = header + raw_header(b"f", size=3) + padded(b"abc")
    tar += header + raw_header(b"s", b"2", linkname=b"target") + header + raw_header(b"d/", b"5")
    image = image_of(tar + raw_header(b"d/x") + END)
    assert image.nodes[b"f"].data == b"abc"
    assert image.nodes[b"s"].data == b"target"
    assert len(image.nodes[b"d"].xattrs[b"user.big"]) == 65535


def test_a_sparse_file_costs_only_its_data(tmp_path: Path) -> None:
    size = 5 << 30
    segments = [(0, 4096), (3 << 30, 8192), (size - 512, 512)]
    numbers = b",".join(b"%d,%d" % pair for pair in segments)
    stored = b"a" * 4096 + b"b" * 8192 + b"c" * 512
    header = pax_header((b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.map", numbers))
    path = tmp_path / "image"
    with path.open("w+b") as out:
        tar = header + raw_header(b"big", size=len(stored)) + padded(stored) + END
        info = write_erofs(io.BytesIO(tar), out, uuid=UUID)
    assert info.data_bytes == len(stored)
    assert info.size < 2 << 20


@pytest.mark.parametrize("bits", [0, 3])
def test_sparse_contents_come_back(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from wherry.images.erofs import writer

    size = 100 * 4096 + 10
    if bits:
        monkeypatch.setattr(writer, "_CHUNK_MAP_MAX", -(-size // (4096 << bits)))
    segments = [(100, 50), (5000, 3000), (40960, 8192), (60_000, 30_000), (size - 5, 5)]
    stored = b"".join(bytes([65 + i]) * length for i, (_, length) in enumerate(segments))
    numbers = b",".join(b"%d,%d" % pair for pair in segments)
    header = pax_header((b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.map", numbers))
    empty = pax_header((b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.map", b"0,0"))
    image = image_of(
        header
        + raw_header(b"f", size=len(stored))
        + padded(stored)
        + raw_header(b"after", size=5)
        + padded(b"after")
        + empty
        + raw_header(b"hole")
        + END
    )
    want = bytearray(size)
    at = 0
    for offset, length in segments:
        want[offset : offset + length] = stored[at : at + length]
        at += length
    assert image.nodes[b"f"].data == want
    assert image.nodes[b"f"].holes
    assert image.nodes[b"after"].data == b"after"
    assert image.nodes[b"hole"].data == bytes(size)


def test_the_same_tar_gives_the_same_bytes_however_it_arrives(tmp_path: Path) -> None:
    tar = tar_of(
        directory("d"),
        *(member(f"d/{i}", data=os.urandom(i * 97), mtime=i) for i in range(200)),
        member("d/.wh.x"),
        hard_link("h", "d/3"),
        member("d/3", data=b"again"),
    )
    images = set()
    for sizes in ((1 << 20,), (511,), (1, 4096, 70_000)):
        out = io.BytesIO(b"what was there before" * 100_000)
        write_erofs(Drip(tar, sizes), out, uuid=UUID)
        images.add(out.getvalue())
    path = tmp_path / "image"
    with path.open("w+b") as file:
        write_erofs(io.BytesIO(tar), file, uuid=UUID)
    images.add(path.read_bytes())
    assert len(images) == 1
    Image(images.pop())


def test_the_bytes_of_a_format_never_change() -> None:
    """When this fails on purpose, raise FORMAT with it: layers are cached by it."""
    tar = tar_of(
        directory("usr", mtime=1),
        member("usr/file", data=b"x" * 5000, mtime=2, pax_headers={"SCHILY.xattr.user.a": "b"}),
        member("usr/small", data=b"small", uid=1000),
        symlink("usr/link", "file"),
        hard_link("usr/hard", "usr/small"),
        member("usr/.wh.gone"),
        member("opt/.wh..wh..opq"),
    )
    out = io.BytesIO()
    write_erofs(io.BytesIO(tar), out, uuid=UUID)
    assert FORMAT == 1
    assert hashlib.sha256(out.getvalue()).hexdigest() == (
        "ca5710a3f253ba95fc954bbf21255b3b55a858b335613a14e9b2abeddd1a6c18"
    )


def test_the_stream_is_read_to_its_end() -> None:
    stream = Drip(tar_of(member("a")) + b"padding" * 10_000)
    write_erofs(stream, io.BytesIO(), uuid=UUID)
    assert stream.read() == b""


def test_info_counts_what_was_written() -> None:
    tar = tar_of(
        member("a/b/c", data=b"x" * 10),
        member("a/b/d", data=b"y" * 9000),
        member(".wh.e"),
        member("a/b/c", data=b"z"),
    )
    out = io.BytesIO()
    info = write_erofs(io.BytesIO(tar), out, uuid=UUID)
    assert (info.entries, info.data_bytes, info.size) == (5, 9011, len(out.getvalue()))
    assert not info.opaque_root


def test_layer_uuids_depend_on_the_layer_only() -> None:
    one = layer_uuid("sha256:" + "0" * 64)
    assert one == layer_uuid("sha256:" + "0" * 64) != layer_uuid("sha256:" + "1" * 64)
    assert isinstance(one, uuid.UUID)


def test_a_uuid_has_16_bytes() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        write_erofs(io.BytesIO(END), io.BytesIO(), uuid=b"short")


def test_crc32c_is_castagnoli_s() -> None:
    # RFC 3720, B.4: 32 bytes of zeros give 8a9136aa when inverted at the end.
    assert layout.crc32c(bytes(32)) ^ 0xFFFFFFFF == 0x8A9136AA


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(entries=3), "more than 3 entries"),
        (Limits(tree_bytes=1000), "more than 1000 bytes of memory"),
        (Limits(depth=2), "deeper than 2 directories"),
        (Limits(image_bytes=8192), "larger than 8192 bytes"),
        (Limits(header_bytes=100), "extended header of"),
    ],
)
def test_limits_are_kept(limits: Limits, message: str) -> None:
    tar = tar_of(
        member("one/two/three/four", data=b"x" * 4096), member("n" * 200, data=b"y" * 8192)
    )
    image_of(tar)
    with pytest.raises(LayerError, match=message):
        image_of(tar, limits)


# Random trees.

name_bytes = st.binary(min_size=1, max_size=12).filter(
    lambda name: (
        not set(name) & {0, 0x2F} and name not in (b".", b"..") and not name.startswith(b".wh.")
    )
)
leaf = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=50) | st.integers(0, 20_000).map(bytes)),
    st.tuples(st.just("link"), st.binary(min_size=1, max_size=150).filter(lambda t: 0 not in t)),
    st.tuples(st.just("fifo"), st.just(b"")),
)
trees = st.recursive(
    leaf, lambda inner: st.dictionaries(name_bytes, inner, max_size=8), max_leaves=30
)
attributes = st.tuples(st.integers(0, 0o7777), st.integers(0, 2_000_000), st.integers(0, 1 << 33))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(name_bytes, trees, max_size=10),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.data(),
)
def test_random_trees_come_back(tree: dict, format: int, data: st.DataObject) -> None:
    members = []
    expected: dict[bytes, tuple] = {}

    def add(path: bytes, node: object) -> None:
        mode, owner, mtime = data.draw(attributes)
        fields = {"mode": mode, "uid": owner, "gid": owner // 3, "mtime": mtime}
        name = path.decode("utf-8", "surrogateescape")
        if isinstance(node, dict):
            members.append(directory(name, **fields))
            expected[path] = (DIR | mode, owner, owner // 3, mtime, None)
            for base, child in node.items():
                add(path + b"/" + base, child)
        else:
            kind, contents = node
            if kind == "file":
                members.append(member(name, data=contents, **fields))
                expected[path] = (REG | mode, owner, owner // 3, mtime, contents)
            elif kind == "link":
                target = contents.decode("utf-8", "surrogateescape")
                members.append(symlink(name, target, **fields))
                expected[path] = (LNK | 0o777, owner, owner // 3, mtime, contents)
            else:
                members.append(member(name, tarfile.FIFOTYPE, **fields))
                expected[path] = (FIFO | mode, owner, owner // 3, mtime, b"")

    for base, child in tree.items():
        add(base, child)
    nodes = image_of(tar_of(*members, format=format)).nodes
    del nodes[b""]
    found = {
        path: (n.mode, n.uid, n.gid, n.mtime, None if n.kind == DIR else n.data)
        for path, n in nodes.items()
    }
    assert found == expected
