"""What `logs --details` shows of a container beside its lines: labels, variables and a tag that the
log options of `json-file` name. Pure; as the reference engine's (moby: daemon/logger/loginfo.go,
daemon/logger/loggerutils/log_tag.go).

Docker stores them with each line; we make them when a log is read, so a container that was renamed
shows its new name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote_plus

from wherry.engine.model import SHORT_ID, Container
from wherry.errors import InvalidInput

_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)


def log_details(container: Container) -> dict[str, str]:
    """The attributes of every line, by name."""
    config = (container.host_config.get("LogConfig") or {}).get("Config") or {}
    variables = dict(_variables(container.config.get("Env") or ()))
    found = {
        **_chosen(config, "labels", container.labels),
        **_chosen(config, "env", variables),
    }
    if tag := config.get("tag"):
        found["tag"] = _ACTION.sub(lambda match: _tag_fields(container)[match[1]], tag)
    return found


def details_text(details: Mapping[str, str]) -> bytes:
    """As it stands before a line: sorted, each part escaped as in a query (moby:
    api/server/httputils/write_log_stream.go)."""
    pairs = (f"{quote_plus(name)}={quote_plus(details[name])}" for name in sorted(details))
    return ",".join(pairs).encode() + b" "


def check_pattern(option: str, pattern: str) -> None:
    """Raises InvalidInput."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise InvalidInput(f"log option {option}: {pattern!r} is no pattern: {error}") from error


def check_tag(tag: str) -> None:
    """Of Go's templates only fields are understood. Raises InvalidInput."""
    for action in _ACTION.findall(tag):
        if action not in _TAG_FIELDS:
            known = ", ".join(_TAG_FIELDS)
            raise InvalidInput(
                f"log option tag: {{{{{action}}}}} is not understood", hint=f"known: {known}"
            )


_TAG_FIELDS = (
    ".ID", ".FullID", ".Name", ".ImageID", ".ImageFullID", ".ImageName", ".DaemonName", ".Command",
)  # fmt: skip


def _tag_fields(container: Container) -> dict[str, str]:
    image = container.image_id.removeprefix("sha256:")
    values = (
        container.id[:SHORT_ID],
        container.id,
        container.name,
        image[:SHORT_ID],
        container.image_id,
        container.image,
        "wherry",
        " ".join(container.argv),
    )
    return dict(zip(_TAG_FIELDS, values, strict=True))


def _variables(entries: Iterable[str]) -> Iterator[tuple[str, str]]:
    for entry in entries:
        name, equals, value = entry.partition("=")
        if equals:
            yield name, value


def _chosen(config: Mapping[str, Any], option: str, values: Mapping[str, str]) -> dict[str, str]:
    """Those that the option lists, and those whose names its `-regex` is found in."""
    listed = (config.get(option) or "").split(",")
    pattern = config.get(f"{option}-regex")
    found = {name: values[name] for name in listed if name in values}
    if pattern:
        found |= {name: value for name, value in values.items() if re.search(pattern, name)}
    return found
