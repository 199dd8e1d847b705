"""Choosing packages: versions, relations, indexes, the dependency closure, the lock."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_image.archive import (
    Package,
    Relation,
    parse_packages,
    parse_relations,
    parse_release,
)
from wherry_image.errors import DependencyError, FormatError, LockError
from wherry_image.lock import Lock, compare_locks, format_lock, parse_lock
from wherry_image.resolve import Index, closure
from wherry_image.version import compare, satisfies

VERSIONS = st.from_regex(r"([0-9]:)?[0-9][0-9a-z.+~]{0,6}(-[0-9a-z.+~]{1,4})?", fullmatch=True)
DIGEST = "ab" * 32

ASCENDING = (
    "0~~",
    "0~",
    "0",
    "0-0a",
    "1.0~beta1~svn1",
    "1.0~beta1",
    "1.0",
    "1.0-1",
    "1.0-1+b2",
    "1.0-1.1",
    "1.0-2",
    "1.0a",
    "1.0+dfsg",
    "1.2.9",
    "1.2.10",
    "6.12.117-1",
    "1:0.1",
)


def test_versions_sort_as_debian_says() -> None:
    for older, newer in pairwise(ASCENDING):
        assert compare(older, newer) < 0 < compare(newer, older), (older, newer)


@given(VERSIONS, VERSIONS, VERSIONS)
def test_the_order_of_versions_is_total(a: str, b: str, c: str) -> None:
    assert compare(a, a) == 0
    assert (compare(a, b) < 0) == (compare(b, a) > 0)
    if compare(a, b) <= 0 and compare(b, c) <= 0:
        assert compare(a, c) <= 0


@pytest.mark.parametrize(
    ("relation", "answers"),
    [("<<", "ynn"), ("<=", "yyn"), ("=", "nyn"), (">=", "nyy"), (">>", "nny")],
)
def test_relations_mean_what_they_say(relation: str, answers: str) -> None:
    got = [satisfies(version, relation, "1.0-1") for version in ("1.0~rc-1", "1.0-1", "1.0-2")]
    assert got == [answer == "y" for answer in answers]


def test_relations_are_parsed() -> None:
    text = "libc6 (>= 2.38), python3:any (<< 4~) | pypy3 [amd64],\n foo"
    assert parse_relations(text) == (
        (Relation("libc6", ">=", "2.38"),),
        (Relation("python3", "<<", "4~"), Relation("pypy3")),
        (Relation("foo"),),
    )
    with pytest.raises(FormatError, match="not a package relation"):
        parse_relations("a (> 1)")


def test_a_release_promises_digests() -> None:
    release = parse_release(
        "Codename: trixie\nDate: Sat, 09 Aug 2025 10:00:00 UTC\n"
        f"SHA256:\n {DIGEST} 123 main/binary-amd64/Packages.xz\n"
    )
    assert release.date == datetime(2025, 8, 9, 10, tzinfo=UTC)
    assert release.valid_until is None
    assert release.checksums == {"main/binary-amd64/Packages.xz": (DIGEST, 123)}


@pytest.mark.parametrize(
    "text", ["", "Codename: x\n", "Codename: x\nDate: never\nSHA256:\n a b c\n"]
)
def test_a_release_without_what_we_need_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_release(text)


def stanza(name: str, version: str = "1", **fields: str) -> str:
    lines = {
        "Package": name,
        "Version": version,
        "Architecture": "amd64",
        "Filename": f"pool/main/{name}_{version}.deb",
        "Size": "7",
        "SHA256": DIGEST,
        **fields,
    }
    return "".join(f"{key.replace('_', '-')}: {value}\n" for key, value in lines.items())


def index(*stanzas: str) -> Index:
    made = Index()
    made.add(parse_packages("\n".join(stanzas), "debian"))
    return made


def names(made: Index, *roots: str) -> list[str]:
    return [package.name for package in closure(made, roots, {"perl": "not wanted"})]


def test_a_package_knows_its_archive() -> None:
    (package,) = parse_packages(stanza("a", Depends="b"), "debian-security")["a"]
    assert package.path == "debian-security/pool/main/a_1.deb"
    assert package.depends == ((Relation("b"),),)


def test_what_is_needed_comes_along() -> None:
    made = index(
        stanza("a", Depends="b (>= 2)", Pre_Depends="c"), stanza("b", "2"), stanza("c"), stanza("d")
    )
    assert names(made, "a") == ["a", "b", "c"]


def test_the_newest_fitting_version_is_taken() -> None:
    made = index(
        stanza("a", Depends="b (<< 3)"), stanza("b", "1"), stanza("b", "2~rc"), stanza("b", "3")
    )
    assert [package.version for package in closure(made, ["a"])] == ["1", "2~rc"]


def test_the_first_alternative_that_exists_is_taken() -> None:
    made = index(stanza("a", Depends="gone | c | b"), stanza("b"), stanza("c"))
    assert names(made, "a") == ["a", "c"]


def test_an_alternative_already_chosen_wins() -> None:
    made = index(stanza("a", Depends="b | c"), stanza("b"), stanza("c"))
    assert names(made, "a", "c") == ["a", "c"]


def test_a_virtual_package_is_provided() -> None:
    made = index(
        stanza("a", Depends="mta (= 2)"),
        stanza("x", Provides="mta"),
        stanza("y", Provides="mta (= 2), other"),
    )
    assert names(made, "a") == ["a", "y"]


def test_what_a_python_pid_1_never_needs_is_left_out() -> None:
    made = index(stanza("a", Depends="perl, b"), stanza("b", Depends="perl"), stanza("perl"))
    assert names(made, "a") == ["a", "b"]
    assert names(made, "a", "perl") == ["a", "b", "perl"]


def test_a_cycle_of_dependencies_ends() -> None:
    made = index(stanza("a", Depends="b"), stanza("b", Depends="a"))
    assert names(made, "a") == ["a", "b"]


def test_an_unmet_dependency_names_the_chain() -> None:
    made = index(stanza("a", Depends="b"), stanza("b", Depends="c (>= 9) | d"), stanza("c"))
    with pytest.raises(DependencyError, match=r"b <- a needs c \(>= 9\) \| d"):
        names(made, "a")
    with pytest.raises(DependencyError, match="no package zz"):
        names(made, "zz")


def test_two_versions_of_one_package_are_refused() -> None:
    made = index(
        stanza("a", Depends="c (= 1)"),
        stanza("b", Depends="c (= 2)"),
        stanza("c", "1"),
        stanza("c", "2"),
    )
    with pytest.raises(DependencyError, match="already chosen"):
        names(made, "a", "b")


PACKAGES = st.builds(
    Package,
    name=st.from_regex(r"[a-z0-9][a-z0-9+.-]{0,8}", fullmatch=True),
    version=VERSIONS,
    architecture=st.sampled_from(["amd64", "all"]),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    size=st.integers(0, 10**10),
    path=st.from_regex(r"debian/pool/main/[a-z0-9_+.~-]{1,9}\.deb", fullmatch=True),
)
TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(
    lambda time: time.replace(microsecond=0)
)


@given(st.lists(PACKAGES, unique_by=lambda package: package.name), TIMES)
def test_a_lock_reads_back_as_it_was_written(packages: list[Package], time: datetime) -> None:
    packages.sort(key=lambda package: package.name)
    lock = Lock("amd64", time, ("a", "b"), tuple(packages))
    assert parse_lock(format_lock(lock), "x.lock") == lock


def test_a_lock_is_the_same_whatever_the_order() -> None:
    one = Package("one", "1", "all", DIGEST, 1, "debian/pool/a.deb")
    two = Package("two", "1", "all", DIGEST, 1, "debian/pool/b.deb")
    time = datetime(2026, 1, 1, tzinfo=UTC)
    text = format_lock(Lock("amd64", time, ("r", "q"), (one, two)))
    assert text == format_lock(Lock("amd64", time, ("q", "r"), (two, one)))
    assert text.splitlines()[-1] == f"two 1 all {DIGEST} 1 debian/pool/b.deb"
    assert "timestamp 20260101T000000Z" in text


HEADER = "format 1\narchitecture amd64\ntimestamp 20260101T000000Z\nroots a\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cut short"),
        ("format 2\n" + HEADER[9:], "lock format 2"),
        ("arch amd64\n", "x.lock:1: expected `format"),
        (HEADER.replace("20260101", "tomorrow"), "not a timestamp"),
        (HEADER + "a 1 all\n", "x.lock:5: not a package line"),
        (HEADER + f"a 1 all {DIGEST} 1 debian/pool/../../etc/passwd\n", "x.lock:5: not a package"),
        (HEADER + f"a 1 all {DIGEST} 1 http://host/pool/a.deb\n", "x.lock:5: not a package line"),
    ],
)
def test_a_damaged_lock_is_refused(text: str, message: str) -> None:
    with pytest.raises(LockError, match=message):
        parse_lock(text, "x.lock")


def test_changes_between_locks_are_named() -> None:
    def package(name: str, version: str) -> Package:
        digest = (version.encode().hex() * 64)[:64]
        return Package(name, version, "amd64", digest, 1, "debian/pool/x.deb")

    old = [package("kernel", "6.12.1"), package("same", "1"), package("old", "1")]
    new = [package("kernel", "6.12.2"), package("same", "1"), package("new", "3")]
    changes = list(map(str, compare_locks(old, new)))
    assert changes == ["kernel 6.12.1 -> 6.12.2", "new 3 (new)", "old 1 (gone)"]
