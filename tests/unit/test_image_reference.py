from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import InvalidReference
from wherry.images.reference import Reference, id_prefix, parse_reference, parse_tagged

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("typed", "full", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox"),
        ("debian:13", "docker.io/library/debian:13", "debian:13"),
        ("grafana/loki", "docker.io/grafana/loki", "grafana/loki"),
        ("docker.io/library/debian", "docker.io/library/debian", "debian"),
        ("index.docker.io/debian", "docker.io/library/debian", "debian"),
        ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
        ("localhost/busybox", "localhost/busybox", "localhost/busybox"),
        ("localhost:5000/a/b:1", "localhost:5000/a/b:1", "localhost:5000/a/b:1"),
        ("quay.io/a/b", "quay.io/a/b", "quay.io/a/b"),
        ("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a"),
        ("Registry/a", "Registry/a", "Registry/a"),
        (f"debian@{DIGEST}", f"docker.io/library/debian@{DIGEST}", f"debian@{DIGEST}"),
        (f"a:b@{DIGEST}", f"docker.io/library/a:b@{DIGEST}", f"a:b@{DIGEST}"),
        ("x:5000", "docker.io/library/x:5000", "x:5000"),
        ("a__b/c-----d.e", "docker.io/a__b/c-----d.e", "a__b/c-----d.e"),
    ],
)
def test_names_are_completed_and_shortened_as_docker_does(
    typed: str, full: str, familiar: str
) -> None:
    reference = parse_reference(typed)
    assert str(reference) == full
    assert reference.familiar == familiar


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("", "empty"),
        (":x", "repository name"),
        ("a:", "tag"),
        ("a:-x", "tag"),
        (f"a:{'t' * 129}", "tag"),
        ("a@", "@"),
        ("a@sha256:123", "@"),
        ("a@md5:" + "0" * 64, "@"),
        ("a//b", "repository name"),
        ("a/", "repository name"),
        ("/a", "repository name"),
        ("a..b", "repository name"),
        ("a_-b", "repository name"),
        ("-a", "repository name"),
        ("debian/Foo", "lower case"),
        ("a b", "repository name"),
        ("x_y.z:5000/a", "host"),
        ("a" * 64, "image id"),
        ("docker.io/" + "a" * 256, "255"),
        ("a\n", "repository name"),
    ],
)
def test_what_is_no_name_is_refused_with_the_reason(typed: str, why: str) -> None:
    if typed == "a" * 64:
        typed = "0" * 64
    with pytest.raises(InvalidReference, match=why):
        parse_reference(typed)


def test_latest_is_added_only_where_there_is_neither_tag_nor_digest() -> None:
    assert parse_reference("a").with_default_tag().tag == "latest"
    assert parse_reference("a:1").with_default_tag().tag == "1"
    assert parse_reference(f"a@{DIGEST}").with_default_tag().tag is None


def test_an_image_cannot_be_tagged_with_a_digest() -> None:
    with pytest.raises(InvalidReference):
        parse_tagged(f"a@{DIGEST}")


def test_only_localhost_without_a_port_is_local() -> None:
    assert parse_reference("localhost/a").is_local
    assert not parse_reference("localhost:5000/a").is_local
    assert not parse_reference("a").is_local


def test_ids_and_their_beginnings_are_recognised() -> None:
    assert id_prefix("a1") == "sha256:a1"
    assert id_prefix("sha256:a1") == "sha256:a1"
    assert id_prefix(DIGEST) == DIGEST
    assert id_prefix("A1") is None
    assert id_prefix("xyz") is None
    assert id_prefix("") is None


word = st.from_regex(r"[a-z0-9]{1,8}(?:(?:[._]|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
host = st.from_regex(r"(?:[a-z0-9]{1,5}\.[a-z0-9]{1,5}|localhost)(?::[0-9]{1,5})?", fullmatch=True)
tag = st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
digest = st.none() | st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)


@given(
    st.builds(Reference, host, st.lists(word, min_size=1, max_size=3).map("/".join), tag, digest)
)
def test_a_complete_reference_survives_printing_and_parsing(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference
    assert parse_reference(reference.familiar) == reference


@given(st.text(alphabet="abA0._-:/@[] \n", max_size=20))
def test_any_text_is_a_reference_that_is_stable_or_an_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidReference as error:
        assert "\n" not in error.message
        return
    assert parse_reference(str(reference)) == reference
    assert parse_reference(reference.familiar) == reference
