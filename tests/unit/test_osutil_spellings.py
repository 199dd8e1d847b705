"""Two names of a container that are one name here: both are told, nothing is lost, no link is
followed under another spelling."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.cli import packing
from wherry.errors import InvalidInput
from wherry.osutil import spellings
from wherry.osutil.spellings import Spellings, twin

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    ("name", "listed", "expected"),
    [
        ("a", {"a"}, None),
        ("a", {"a", "A"}, None),
        ("a", {"A"}, "A"),
        ("xt_mark.ko", {"xt_MARK.ko", "b"}, "xt_MARK.ko"),
        ("STRASSE", {"stra\u00dfe"}, "stra\u00dfe"),
        (COMPOSED, {DECOMPOSED}, None),
        (COMPOSED, {DECOMPOSED.upper()}, DECOMPOSED.upper()),
        ("a", set(), None),
    ],
)
def test_a_twin_is_the_listed_spelling(name: str, listed: set[str], expected: str | None) -> None:
    assert twin(name, listed) == expected


@given(st.text(min_size=1), st.sets(st.text(min_size=1)))
def test_a_name_that_is_listed_has_no_twin(name: str, others: set[str]) -> None:
    assert twin(name, others | {name}) is None


def test_accents_that_this_writer_put_together_in_two_ways_conflict(tmp_path: Path) -> None:
    known = Spellings()
    known.made(tmp_path / DECOMPOSED)
    assert known.conflict(tmp_path / COMPOSED) == tmp_path / DECOMPOSED
    assert known.conflict(tmp_path / DECOMPOSED) is None


def test_only_a_few_listings_are_kept_and_names_that_are_made_join_them(tmp_path: Path) -> None:
    known = Spellings()
    assert known.conflict(tmp_path / "Name") is None
    known.made(tmp_path / "Name")
    assert known.conflict(tmp_path / "name") == tmp_path / "Name"
    for number in range(100):
        (tmp_path / str(number)).mkdir()
        known.conflict(tmp_path / str(number) / "x")
    assert len(known._listed) == 64


def archive(*members: tuple[str, bytes, str]) -> Iterator[bytes]:
    """A tar of (name, type, contents or target of a link)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind, text in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o755
            if kind == tarfile.REGTYPE:
                info.size = len(text)
            else:
                info.linkname = text
            tar.addfile(info, io.BytesIO(text.encode()))
    return iter([file.getvalue()])


def unpack(directory: Path, *members: tuple[str, bytes, str]) -> None:
    packing.unpack(archive(*members), directory, "top", "top")


def ignores_case(directory: Path) -> bool:
    (directory / "Probe").touch()
    return (directory / "probe").exists()


@pytest.fixture
def folding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which case does not matter: a real one, or one that plays it."""
    if not ignores_case(tmp_path):
        real = packing._status

        def status(path: Path) -> object:
            parent = path.parent
            names = {it.name.casefold(): it for it in parent.iterdir()} if parent.is_dir() else {}
            return real(names.get(path.name.casefold(), path))

        monkeypatch.setattr(packing, "_status", status)
    return tmp_path


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE])
def test_names_that_differ_by_case_are_both_told(folding: Path, kind: bytes) -> None:
    with pytest.raises(InvalidInput, match="are one name on this file system") as caught:
        unpack(folding, ("top/Makefile", tarfile.REGTYPE, "one"), ("top/makefile", kind, "two"))
    assert "Makefile" in caught.value.message
    assert "makefile" in caught.value.message
    assert (folding / "top" / "Makefile").read_text() == "one"


def test_the_same_archive_twice_is_no_conflict(folding: Path) -> None:
    for text in ("one", "two"):
        unpack(folding, ("top", tarfile.DIRTYPE, ""), (f"top/{COMPOSED}", tarfile.REGTYPE, text))
    assert (folding / "top" / COMPOSED).read_text() == "two"


def test_a_link_of_the_archive_is_not_followed_under_another_spelling(folding: Path) -> None:
    outside = folding / "outside"
    outside.mkdir()
    try:
        (folding / "try").symlink_to(outside)
    except OSError:
        pass  # Windows lets not everybody make one
    if not (folding / "try").is_symlink():  # Wine says yes and makes none
        pytest.skip("no symbolic links here")
    with pytest.raises(InvalidInput, match="its own link"):
        unpack(
            folding,
            ("top", tarfile.DIRTYPE, ""),
            ("top/Link", tarfile.SYMTYPE, str(outside)),
            ("top/link/x", tarfile.REGTYPE, "escaped"),
        )
    assert not list(outside.iterdir())


def test_where_case_matters_both_are_there(tmp_path: Path) -> None:
    if ignores_case(tmp_path):
        pytest.skip("case does not matter here")
    unpack(tmp_path, ("top/a", tarfile.REGTYPE, "1"), ("top/A", tarfile.REGTYPE, "2"))
    assert (tmp_path / "top" / "a").read_text() == "1"
    assert spellings.twin("a", {"a", "A"}) is None
