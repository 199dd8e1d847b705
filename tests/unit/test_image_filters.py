"""Docker's filters of images."""

from __future__ import annotations

import pytest

from wherry.api.timefmt import parse_moment
from wherry.engine.image_filters import PRUNING, image_filter, path_pattern
from wherry.errors import ImageNotFound, InvalidInput
from wherry.images.image import Image


def image(number: int, *tags: str, **config: object) -> Image:
    return Image(
        id=f"sha256:{number}",
        tags=tags,
        digests=(f"repo@sha256:{number}",) if not tags else (),
        created_ns=number * 10**9,
        architecture="amd64",
        os="linux",
        variant="",
        size=0,
        config=config,
        diff_ids=(),
        manifest_digest="",
        raw_config=b"",
    )


ONE = image(1, "debian:12", "mine/debian:12", Labels={"a": "1"})
TWO = image(2, "localhost:5000/x/y:1")
OLD = image(3, Labels={"a": "2", "b": ""})
ALL = [ONE, TWO, OLD]


def find(ref: str) -> Image:
    for it in ALL:
        if ref in it.tags:
            return it
    raise ImageNotFound(ref)


def left(**filters: list[str]) -> list[int]:
    wanted = image_filter(filters, find, int)
    return [it.created_ns // 10**9 for it in ALL if wanted(it) is not None]


def test_no_filter_leaves_all() -> None:
    assert left() == [1, 2, 3]


@pytest.mark.parametrize("yes", ["1", "true", "True"])
def test_dangling_means_without_a_tag(yes: str) -> None:
    assert left(dangling=[yes]) == [3]
    assert left(dangling=["false"]) == [1, 2]


def test_labels_must_all_be_there() -> None:
    assert left(label=["a"]) == [1, 3]
    assert left(label=["a=1"]) == [1]
    assert left(label=["a", "b"]) == [3]


def test_before_and_since_go_by_another_images_time() -> None:
    assert left(before=["localhost:5000/x/y:1"]) == [1]
    assert left(since=["debian:12"]) == [2, 3]
    with pytest.raises(ImageNotFound):
        left(before=["nothing"])


def test_until_is_a_time() -> None:
    assert left(until=[str(2 * 10**9)]) == [1]


def test_reference_leaves_the_tags_that_match() -> None:
    wanted = image_filter({"reference": ["debian"]}, find, int)
    found = wanted(ONE)
    assert found is not None
    assert found.tags == ("debian:12",)
    assert left(reference=["*/debian:*"]) == [1]
    assert left(reference=["localhost:5000/*/*"]) == [2]
    assert left(reference=["repo"]) == [3]
    assert left(reference=["nothing", "x"]) == []


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("*", "a/b", False),
        ("a/?", "a/b", True),
        ("[ab]x", "bx", True),
        ("[^ab]x", "bx", False),
        ("[a-c]x", "bx", True),
        ("a.b", "axb", False),
        ("[", "[", True),
    ],
)
def test_patterns_are_gos(pattern: str, text: str, matches: bool) -> None:
    assert bool(path_pattern(pattern).fullmatch(text)) is matches


def test_unknown_filters_and_values_are_refused() -> None:
    with pytest.raises(InvalidInput, match="invalid filter 'nope'"):
        left(nope=["1"])
    with pytest.raises(InvalidInput, match="dangling=maybe"):
        left(dangling=["maybe"])
    with pytest.raises(InvalidInput, match="invalid filter 'before'"):
        image_filter({"before": ["x"]}, find, int, PRUNING)


def test_a_moment_is_a_time_or_a_duration_ago() -> None:
    assert parse_moment("5") == 5 * 10**9
    assert parse_moment("1970-01-01T00:00:05Z") == 5 * 10**9
    assert parse_moment("0s") - parse_moment("1h") >= 3599 * 10**9
    with pytest.raises(InvalidInput):
        parse_moment("soon")
