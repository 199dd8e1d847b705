"""Debian version numbers: their order, as in deb-version(7), and dependency relations between
them."""

from __future__ import annotations

import re
from itertools import zip_longest

_PART = re.compile(r"(\D*)(\d*)")

RELATIONS = ("<<", "<=", "=", ">=", ">>")
"""deb-control(5), "Syntax of relationship fields"."""


def compare(left: str, right: str) -> int:
    """Negative, zero or positive as `left` is older than, equal to or newer than `right`."""
    left_epoch, left_upstream, left_revision = _split(left)
    right_epoch, right_upstream, right_revision = _split(right)
    return (
        (left_epoch > right_epoch) - (left_epoch < right_epoch)
        or _compare_part(left_upstream, right_upstream)
        or _compare_part(left_revision, right_revision)
    )


def satisfies(version: str, relation: str, wanted: str) -> bool:
    """Whether `version` stands in `relation` (one of `RELATIONS`) to `wanted`."""
    order = compare(version, wanted)
    return {
        "<<": order < 0,
        "<=": order <= 0,
        "=": order == 0,
        ">=": order >= 0,
        ">>": order > 0,
    }[relation]


def _split(version: str) -> tuple[int, str, str]:
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "0")
    return int(epoch) if epoch.isdigit() else 0, upstream, revision


def _compare_part(left: str, right: str) -> int:
    """Alternate runs of non-digits (by `_weight`) and digits (by value); a missing run is empty."""
    pairs = zip_longest(_PART.findall(left), _PART.findall(right), fillvalue=("", ""))
    for (left_text, left_number), (right_text, right_number) in pairs:
        for a, b in zip_longest(left_text, right_text, fillvalue=""):
            if _weight(a) != _weight(b):
                return _weight(a) - _weight(b)
        difference = int(left_number or 0) - int(right_number or 0)
        if difference:
            return difference
    return 0


def _weight(character: str) -> int:
    """`~` sorts before the end of the part, letters before everything else."""
    if character == "~":
        return -1
    if character == "":
        return 0
    return ord(character) if character.isalpha() else ord(character) + 256
