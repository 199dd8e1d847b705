"""cp: where things go and what they are called; tars of this computer's files and back."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.cli.copyplan import CONTENTS, CopyPlan, Place, plan_copy, renamed, split_argument
from wherry.cli.packing import pack, unpack
from wherry.errors import InvalidInput, NotFound, WherryError

FILE, FOLDER = Place("/s/file"), Place("/s/dir", is_directory=True)
INSIDE = Place("/s/dir/.", is_directory=True)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (FILE, Place("/d", is_directory=True), CopyPlan("/d", "file")),
        (FOLDER, Place("/d", is_directory=True), CopyPlan("/d", "dir")),
        (INSIDE, Place("/d", is_directory=True), CopyPlan("/d", CONTENTS)),
        (Place("/", is_directory=True), Place("/d", is_directory=True), CopyPlan("/d", CONTENTS)),
        (FILE, Place("/d/old"), CopyPlan("/d", "old")),
        (FILE, Place("/d/new", exists=False), CopyPlan("/d", "new")),
        (FOLDER, Place("/d/new", exists=False), CopyPlan("/d", "new")),
        (FOLDER, Place("/d/new/", exists=False), CopyPlan("/d", "new")),
        (INSIDE, Place("/d/new", exists=False), CopyPlan("/d", "new")),
        (Place("/s/x", name="link"), Place("/d", is_directory=True), CopyPlan("/d", "link")),
    ],
)
def test_copies_go_where_dockers_go(source: Place, target: Place, expected: CopyPlan) -> None:
    assert plan_copy(source, target) == expected


def test_copies_that_cannot_be() -> None:
    with pytest.raises(InvalidInput, match="cannot copy a directory to the file"):
        plan_copy(FOLDER, Place("/d/old"))
    for path in ("/d/new/", "/d/new/."):
        with pytest.raises(NotFound, match="no such directory"):
            plan_copy(FILE, Place(path, exists=False))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web:/etc/x", ("web", "/etc/x")),
        ("web:relative", ("web", "relative")),
        ("/local:name", ("", "/local:name")),
        ("./local:name", ("", "./local:name")),
        ("local", ("", "local")),
        ("C:\\x", ("", "C:\\x")),
        ("C:/x", ("", "C:/x")),
        ("-", ("", "-")),
    ],
)
def test_arguments_are_told_apart(text: str, expected: tuple[str, str]) -> None:
    assert split_argument(text) == expected


@pytest.mark.parametrize(
    ("name", "top", "wanted", "expected"),
    [
        ("dir/a/b", "dir", "new", "new/a/b"),
        ("dir", "dir", "new", "new"),
        ("./a", CONTENTS, CONTENTS, "a"),
        ("./", CONTENTS, CONTENTS, CONTENTS),
        ("/etc/x", CONTENTS, "new", "new/etc/x"),
        ("dir/dir/x", "dir", CONTENTS, "dir/x"),
    ],
)
def test_entries_are_renamed(name: str, top: str, wanted: str, expected: str) -> None:
    assert renamed(name, top, wanted) == expected


def chunks(data: bytes, size: int = 700) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "sub/empty").mkdir(parents=True)
    (top / "big").write_bytes(os.urandom(100_001))
    (top / "sub" / ("long" * 40)).write_text("x")
    (top / "run").write_text("#!/bin/sh\n")
    (top / "run").chmod(0o755)
    (top / "link").symlink_to("sub/../nowhere")
    (top / "hard").hardlink_to(top / "big")
    os.utime(top / "run", (1_000_000_000, 1_000_000_000))
    (top / "sub").chmod(0o700)
    return top


def shape(top: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        name = path.relative_to(top).as_posix()
        if path.is_symlink():
            found[name] = (os.fspath(path.readlink()),)
        elif path.is_dir():
            found[name] = (stat.S_IMODE(status.st_mode),)
        else:
            mode = stat.S_IMODE(status.st_mode)
            found[name] = (mode, path.read_bytes(), status.st_nlink, int(status.st_mtime))
    return found


def test_what_is_packed_is_unpacked_the_same(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    size = unpack(chunks(b"".join(pack(tree, "tree"))), target, "tree", "copy")
    assert shape(target / "copy") == shape(tree)
    assert size == 100_001 + 1 + 10
    unpack(chunks(b"".join(pack(tree, "tree"))), target, "tree", "copy")  # over itself
    assert shape(target / "copy") == shape(tree)
    unpack(chunks(b"".join(pack(tree, CONTENTS))), target, CONTENTS, CONTENTS)
    assert (target / "sub/empty").is_dir()


def test_what_is_packed_is_what_tarfile_reads(tree: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(b"".join(pack(tree, "t")))) as archive:
        members = {member.name: member for member in archive}
        assert members["t/hard"].linkname == "t/big" or members["t/big"].linkname == "t/hard"
        assert members["t/run"].mode == 0o755
        assert archive.getnames()[0] == "t"


def test_a_file_that_shrinks_while_it_is_packed_is_filled_up(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 3000)
    parts = pack(path, "log")
    head = next(parts)
    path.write_bytes(b"x")
    with tarfile.open(fileobj=io.BytesIO(head + b"".join(parts))) as archive:
        content = archive.extractfile("log")
        assert content is not None and content.read() == b"x" + bytes(2999)


# Hostile archives.


def made(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


@pytest.mark.parametrize("name", ["top/../../evil", "../evil", "top/..", "top/a/../../../evil"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    target = tmp_path / "a/b"
    target.mkdir(parents=True)
    with pytest.raises(InvalidInput, match="leads out"):
        unpack(chunks(made((member(name), b"x"))), target, "top", "copy")
    assert list(tmp_path.rglob("evil")) == []


def test_links_that_the_archive_brought_are_not_followed(tmp_path: Path) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    link = member("top/l", tarfile.SYMTYPE, os.fspath(outside))
    with pytest.raises(InvalidInput, match="its own link"):
        unpack(chunks(made((link, b""), (member("top/l/evil"), b"x"))), target, "top", "copy")
    replaced = made((link, b""), (member("top/l"), b"x"))
    (target / "copy/l").unlink()
    unpack(chunks(replaced), target, "top", "copy")
    assert (target / "copy/l").read_bytes() == b"x"
    hard = made((link, b""), (member("top/h", tarfile.LNKTYPE, "top/l"), b""))
    with pytest.raises(InvalidInput):
        unpack(chunks(hard), tmp_path / "target", "top", "other")
    assert list(outside.iterdir()) == []


def test_no_set_uid_bits_and_no_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = made((member("top/su", mode=0o6755), b"x"), (member("top/null", tarfile.CHRTYPE), b""))
    unpack(chunks(data), tmp_path, "top", "copy")
    assert stat.S_IMODE((tmp_path / "copy/su").stat().st_mode) == 0o755
    assert not (tmp_path / "copy/null").exists()
    assert "is a device" in capsys.readouterr().err


def test_kinds_are_kept(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot overwrite directory"):
        unpack(chunks(made((member("x"), b""))), tmp_path, "x", "dir")
    with pytest.raises(InvalidInput, match="cannot overwrite non-directory"):
        unpack(chunks(made((member("x", tarfile.DIRTYPE), b""))), tmp_path, "x", "file")


@given(st.binary(max_size=2000))
def test_any_bytes_are_an_archive_or_a_clear_refusal(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        try:
            unpack(chunks(data), Path(directory), "x", "x")
        except WherryError as error:
            assert "\n" not in error.message
