"""Docker's filters of images: `GET /images/json`, `POST /images/prune`. Pure.

Every filter must hold; any of a filter's values is enough, but for labels, which must all be there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from wherry.errors import InvalidInput

if TYPE_CHECKING:
    from wherry.images.store import Image

Filters = Mapping[str, Sequence[str]]
LISTING = frozenset({"dangling", "label", "before", "since", "reference", "until"})
PRUNING = frozenset({"dangling", "label", "label!", "until"})

_TRUE = ("1", "true", "t")
_FALSE = ("0", "false", "f")


def image_filter(
    filters: Filters,
    find: Callable[[str], Image],
    moment: Callable[[str], int],
    known: frozenset[str] = LISTING,
) -> Callable[[Image], Image | None]:
    """What is left of an image: None, or the image with those tags that are asked for.

    Args:
        find: resolves the references of `before` and `since`.
        moment: parses `until` to nanoseconds since the epoch.

    Raises:
        InvalidInput: an unknown filter or value. ImageNotFound: `before` or `since` name none.
    """
    tests = [
        _test(name, values, find, moment)
        for name, values in filters.items()
        if values and _checked(name, known) not in ("reference",)
    ]
    patterns = [path_pattern(text) for text in filters.get("reference") or ()]

    def apply(image: Image) -> Image | None:
        if not all(test(image) for test in tests):
            return None
        if not patterns:
            return image
        tags = tuple(tag for tag in image.tags if _named(tag, patterns))
        digests = tuple(name for name in image.digests if _named(name, patterns))
        return replace(image, tags=tags, digests=digests) if tags or digests else None

    return apply


def is_true(filters: Filters, name: str, default: bool) -> bool:
    """A filter that says yes or no. Raises InvalidInput."""
    values = filters.get(name)
    if not values:
        return default
    said = {value.lower() for value in values}
    if said <= set(_TRUE):
        return True
    if said <= set(_FALSE):
        return False
    raise InvalidInput(f"invalid filter '{name}={values[0]}'", hint="write true or false")


def path_pattern(text: str) -> re.Pattern[str]:
    """Go's path.Match: `*` and `?` do not match a slash."""
    parts = []
    position = 0
    while position < len(text):
        sign = text[position]
        position += 1
        if sign == "*":
            parts.append("[^/]*")
        elif sign == "?":
            parts.append("[^/]")
        elif sign == "[" and (end := text.find("]", position + 1)) > 0:
            inner = text[position:end]
            negated = inner.startswith("^")
            signs = re.escape(inner.removeprefix("^")).replace(r"\-", "-")
            parts.append(f"[{'^' if negated else ''}{signs}]")
            position = end + 1
        else:
            parts.append(re.escape(sign))
    try:
        return re.compile("".join(parts))
    except re.error as error:
        raise InvalidInput(f"invalid filter 'reference={text}'") from error


def _checked(name: str, known: frozenset[str]) -> str:
    if name not in known:
        raise InvalidInput(f"invalid filter '{name}'", hint=f"known: {', '.join(sorted(known))}")
    return name


def _test(
    name: str,
    values: Sequence[str],
    find: Callable[[str], Image],
    moment: Callable[[str], int],
) -> Callable[[Image], bool]:
    if name == "dangling":
        wanted = is_true({name: values}, name, False)
        return lambda image: wanted == (not image.tags)
    if name == "label":
        return lambda image: all(_has_label(image, value) for value in values)
    if name == "label!":
        return lambda image: not any(_has_label(image, value) for value in values)
    if name == "until":
        end = min(moment(value) for value in values)
        return lambda image: image.created_ns < end
    times = [find(value).created_ns for value in values]
    if name == "before":
        return lambda image: image.created_ns < min(times)
    return lambda image: image.created_ns > max(times)


def _has_label(image: Image, wanted: str) -> bool:
    name, separator, value = wanted.partition("=")
    labels = image.config.get("Labels") or {}
    return name in labels and (not separator or labels[name] == value)


def _named(name: str, patterns: Iterable[re.Pattern[str]]) -> bool:
    """Whether a pattern matches a name, with its tag or digest or without."""
    bare = name.partition("@")[0] if "@" in name else name.rpartition(":")[0]
    return any(pattern.fullmatch(name) or pattern.fullmatch(bare) for pattern in patterns)
