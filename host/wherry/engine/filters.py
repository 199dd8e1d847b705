"""Docker's filters of `GET /containers/json`. Pure.

Every filter must hold; any of a filter's values is enough, but for labels, which must all be there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from wherry.engine.model import Container, Status
from wherry.errors import InvalidInput, NotImplementedYet

Filters = Mapping[str, Sequence[str]]

_KNOWN = (
    "ancestor", "before", "exited", "health", "id", "label", "name", "since", "status", "volume",
)  # fmt: skip
_LATER = ("expose", "is-task", "isolation", "network", "publish")
SHOW_STOPPED = ("status", "exited", "before", "since")
"""Filters that ask for stopped containers too, without `all`."""


def container_filter(
    filters: Filters, find: Callable[[str], Container]
) -> Callable[[Container], bool]:
    """A predicate of containers. `find` resolves the references of `before` and `since`.

    Raises:
        InvalidInput: an unknown filter or value.
        NotImplementedYet: a filter of what there is not yet.
        NotFound: `before` or `since` name no container.
    """
    tests = [_test(name, values, find) for name, values in filters.items() if values]
    return lambda container: all(test(container) for test in tests)


def _test(
    name: str, values: Sequence[str], find: Callable[[str], Container]
) -> Callable[[Container], bool]:
    if name in _LATER:
        raise NotImplementedYet(f"filter {name} is not implemented")
    if name == "id":
        return lambda container: any(_search(value, container.id) for value in values)
    if name == "name":
        return lambda container: any(_has_name(container, value) for value in values)
    if name == "label":
        return lambda container: all(_has_label(container, value) for value in values)
    if name == "ancestor":
        return lambda container: any(_is_from(container, value) for value in values)
    if name == "volume":
        return lambda container: any(_mounts(container, value) for value in values)
    if name == "status":
        wanted = [_status(value) for value in values]
        return lambda container: container.status in wanted
    if name == "exited":
        codes = [_number(value) for value in values]
        return lambda container: container.status is Status.EXITED and container.exit_code in codes
    if name == "health":
        _check_health(values)
        return lambda container: container.health_status in values
    if name == "before":
        newest = min(find(value).created_ns for value in values)
        return lambda container: container.created_ns < newest
    if name == "since":
        oldest = max(find(value).created_ns for value in values)
        return lambda container: container.created_ns > oldest
    raise InvalidInput(f"invalid filter '{name}'", hint=f"known: {', '.join(_KNOWN)}")


def _search(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return pattern in text


def _has_name(container: Container, pattern: str) -> bool:
    return _search(pattern, container.name) or _search(pattern, f"/{container.name}")


def _has_label(container: Container, wanted: str) -> bool:
    name, separator, value = wanted.partition("=")
    labels = container.labels
    return name in labels and (not separator or labels[name] == value)


def _mounts(container: Container, wanted: str) -> bool:
    """A volume by its name, or whatever is mounted at a path."""
    return any(wanted in (mount.volume, mount.destination) for mount in container.mounts)


def _is_from(container: Container, image: str) -> bool:
    if container.image_id == image or container.image_id.startswith(f"sha256:{image}"):
        return True
    return _tagged(container.image) == _tagged(image)


def _tagged(reference: str) -> str:
    """With `:latest` where it has neither tag nor digest."""
    last = reference.rpartition("/")[2]
    return reference if ":" in last or "@" in last else f"{reference}:latest"


def _check_health(values: Sequence[str]) -> None:
    for value in values:
        if value not in ("starting", "healthy", "unhealthy", "none"):
            raise InvalidInput(f"invalid filter 'health={value}'")


def _status(value: str) -> Status:
    try:
        return Status(value)
    except ValueError:
        raise InvalidInput(f"invalid filter 'status={value}'") from None


def _number(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise InvalidInput(f"invalid filter 'exited={value}'") from None
