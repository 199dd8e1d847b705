from __future__ import annotations

import pytest

from wherry.errors import InvalidInput
from wherry.images.platform import (
    Platform,
    acceptable,
    choose,
    default_platform,
    matches,
    normalise,
    parse_platform,
)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("i386", "linux/386"),
        ("ARM64", "linux/arm64"),
        ("linux", str(default_platform())),
    ],
)
def test_platforms_have_one_name(typed: str, meant: str) -> None:
    assert str(parse_platform(typed)) == meant


@pytest.mark.parametrize("typed", ["", "linux/", "/amd64", "a/b/c/d", "linux/amd 64", "linux/é"])
def test_what_is_no_platform_is_refused(typed: str) -> None:
    with pytest.raises(InvalidInput, match="is not a platform"):
        parse_platform(typed)


def test_what_runs_where_is_as_in_containerd() -> None:
    def names(text: str) -> list[str]:
        return [str(platform) for platform in acceptable(parse_platform(text))]

    assert names("linux/amd64") == ["linux/amd64", "linux/386"]
    assert names("linux/amd64/v3") == [
        "linux/amd64/v3",
        "linux/amd64/v2",
        "linux/amd64",
        "linux/386",
    ]
    assert names("linux/arm64") == [
        "linux/arm64",
        "linux/arm/v8",
        "linux/arm/v7",
        "linux/arm/v6",
        "linux/arm/v5",
    ]
    assert names("linux/arm/v6") == ["linux/arm/v6", "linux/arm/v5"]
    assert names("linux/riscv64") == ["linux/riscv64"]


def test_an_older_variant_satisfies_a_newer_one_but_not_the_reverse() -> None:
    assert matches(Platform("linux", "arm", "v7"), Platform("linux", "arm", "v6"))
    assert not matches(Platform("linux", "arm", "v6"), Platform("linux", "arm", "v7"))
    assert not matches(Platform("linux", "amd64"), Platform("windows", "amd64"))


def test_the_best_offer_is_chosen_and_the_first_of_equals() -> None:
    offers = [("a", "linux/arm/v6"), ("b", "linux/arm/v7"), ("c", "linux/arm/v7")]
    best = choose(Platform("linux", "arm", "v7"), offers, lambda offer: parse_platform(offer[1]))
    assert best == ("b", "linux/arm/v7")


def test_an_offer_without_a_platform_is_the_last_resort() -> None:
    def platform_of(offer: str) -> Platform | None:
        return None if offer == "?" else parse_platform(offer)

    wanted = normalise("linux", "amd64")
    assert choose(wanted, ["?", "linux/386"], platform_of) == "linux/386"
    assert choose(wanted, ["?", "linux/s390x"], platform_of) == "?"
    assert choose(wanted, ["linux/s390x"], platform_of) is None
