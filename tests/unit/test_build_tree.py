"""A root file system that is never extracted: layers applied as OCI says, the same tar always."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.build.tree import Entry, FileTree
from wherry.errors import InvalidInput
from wherry.images import tar_entry as kinds
from wherry_guest import tarformat


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[FileTree]:
    with FileTree(tmp_path) as it:
        yield it


def layer(*entries: tuple[bytes, bytes, bytes]) -> io.BytesIO:
    """A tar of (name, kind, contents or link target)."""
    data = b""
    for name, kind, content in entries:
        is_file = kind == kinds.REGULAR
        link = b"" if is_file else content
        data += tarformat.header(name, kind, 0o755, size=len(content) if is_file else 0, link=link)
        data += content + tarformat.padding(len(content)) if is_file else b""
    return io.BytesIO(data + tarformat.END)


def file(name: bytes, content: bytes = b"x") -> tuple[bytes, bytes, bytes]:
    return name, kinds.REGULAR, content


def directory(name: bytes) -> tuple[bytes, bytes, bytes]:
    return name, kinds.DIRECTORY, b""


def test_a_whiteout_removes_a_tree_and_an_opaque_marker_what_was_in_it(tree: FileTree) -> None:
    tree.apply(layer(directory(b"a"), file(b"a/b/c"), directory(b"o"), file(b"o/old"), file(b"k")))
    tree.apply(layer(file(b".wh.a", b""), file(b"o/new"), file(b"o/.wh..wh..opq", b"")))
    assert tree.paths() == [b"k", b"o", b"o/new"]


def test_what_replaces_a_directory_replaces_what_was_in_it(tree: FileTree) -> None:
    tree.apply(layer(directory(b"a"), file(b"a/b")))
    tree.apply(layer(file(b"a", b"now a file")))
    assert tree.paths() == [b"a"]
    assert tree.read(b"a") == b"now a file"


def test_hard_links_share_contents_and_stay_links(tree: FileTree) -> None:
    tree.apply(layer(file(b"z", b"shared"), (b"a", kinds.HARD_LINK, b"z")))
    with tarfile.open(fileobj=io.BytesIO(b"".join(tree.tar()))) as tar:
        first, second = tar.getmembers()
    assert (first.name, first.size, second.name) == ("a", 6, "z")
    assert second.islnk()
    assert second.linkname == "a"


def test_a_link_to_nothing_is_refused(tree: FileTree) -> None:
    with pytest.raises(InvalidInput, match="no file"):
        tree.apply(layer((b"a", kinds.HARD_LINK, b"missing")))


def test_names_cannot_lead_out(tree: FileTree) -> None:
    tree.apply(layer(file(b"../../etc/passwd"), file(b"/abs"), file(b"./a/./b")))
    assert tree.paths() == [b"a/b", b"abs", b"etc/passwd"]


def test_links_among_the_parents_are_followed_inside_the_tree(tree: FileTree) -> None:
    tree.put(b"lib", Entry(kinds.SYMLINK, 0o777, link=b"usr/lib"))
    tree.put(b"usr/deep/up", Entry(kinds.SYMLINK, 0o777, link=b"../../../../lib"))
    tree.put(b"abs", Entry(kinds.SYMLINK, 0o777, link=b"/usr"))
    assert tree.resolved(b"lib/x/y") == b"usr/lib/x/y"
    assert tree.resolved(b"usr/deep/up/z") == b"usr/lib/z"
    assert tree.resolved(b"abs/lib") == b"usr/lib"
    tree.put(b"loop", Entry(kinds.SYMLINK, 0o777, link=b"loop"))
    with pytest.raises(InvalidInput, match="too many"):
        tree.resolved(b"loop/x")


def test_sparse_files_get_their_holes(tree: FileTree) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("sparse")
        body = b"1\n1000\n5\n".ljust(512, b"\0") + b"12345"
        info.size = len(body)
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "sparse",
            "GNU.sparse.realsize": "2000",
        }
        tar.addfile(info, io.BytesIO(body))
    buffer.seek(0)
    tree.apply(buffer)
    assert tree.read(b"sparse") == bytes(1000) + b"12345" + bytes(995)


def test_big_files_go_through_in_pieces(tree: FileTree) -> None:
    content = bytes(range(256)) * 4099
    tree.apply(layer(file(b"big", content), file(b"small")))
    with tarfile.open(fileobj=io.BytesIO(b"".join(tree.tar()))) as tar:
        big = tar.extractfile("big")
        assert big is not None
        assert big.read() == content


names = st.lists(st.sampled_from([b"a", b"b", b"c", b"dd"]), min_size=1, max_size=4).map(b"/".join)
contents = st.binary(max_size=1500)


@given(st.dictionaries(names, contents, max_size=12), st.integers(0, 2**33))
@settings(deadline=None)
def test_a_tree_survives_its_own_tar(files: dict[bytes, bytes], mtime: int) -> None:
    scratch = Path(tempfile.gettempdir())
    with FileTree(scratch) as one, FileTree(scratch) as other:
        for path, content in sorted(files.items(), key=lambda item: len(item[0])):
            parents = [path[:at] for at in range(len(path)) if path[at : at + 1] == b"/"]
            if any((found := one.get(it)) and found.kind != kinds.DIRECTORY for it in parents):
                continue
            one.directories(path, mtime)
            one.put_file(path, Entry(kinds.REGULAR, 0o644, mtime=mtime), content)
        data = b"".join(one.tar())
        assert data == b"".join(one.tar())
        other.apply(io.BytesIO(data))
        assert other.paths() == one.paths()
        assert b"".join(other.tar()) == data
