"""User namespaces: whose ids a container's ids are in the machine. Pure.

Rules: a range belongs to one container, or to the group of those that share namespaces; nothing of
it is on any disk (the guest maps layers and volumes at the mount), so a range is only a number, and
images, volumes, `cp`, `diff` and `commit` see what they always see. Words and refusals are the
reference engine's (moby: daemon/daemon_unix.go, daemon/oci_linux.go); `auto` is podman's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from wherry.engine.model import Container, IdRange, Json
from wherry.engine.modes import neighbour
from wherry.errors import Conflict, InvalidInput

HOST, PRIVATE, AUTO = "host", "private", "auto"
DEFAULTS = (HOST, PRIVATE)
"""What the setting `userns` may say."""

SIZE = 65_536
"""Ids of a container: what Docker's and podman's subordinate ranges have, so that `nobody` is one
of them."""

_STEP = 65_536
_FIRST, _LAST = 2 * _STEP, 2**31
"""Ranges begin at a multiple of the step, above what any system's own users have, and end where
some programs take an id for a negative number."""

_SIZES = (1024, 2**26)
_AUTO = re.compile(r"auto(?::size=([0-9]{1,9}))?")

_SHARED = ("NetworkMode", "IpcMode", "PidMode")
_NOT_THE_HOSTS = (
    ("NetworkMode", "the host's network namespace"),
    ("PidMode", "the host PID namespace"),
    ("IpcMode", "the host's IPC namespace"),
    ("CgroupnsMode", "the host's cgroup namespace"),
)


def check_userns(host_config: Mapping[str, Any]) -> None:
    """What can be judged without knowing other containers. Raises InvalidInput."""
    mode = host_config.get("UsernsMode") or ""
    if mode not in ("", HOST, PRIVATE) and _size(mode) is None:
        raise InvalidInput(
            f"invalid USER mode: {mode}", hint="host, private, auto or auto:size=NUMBER"
        )
    if _size(mode) is not None:
        _check_own(host_config)


def id_range(
    host_config: Mapping[str, Any],
    default: str,
    find: Callable[[str], Container],
    others: Iterable[Container],
) -> IdRange | None:
    """The ids that a new container's ids become; None: it has no user namespace.

    Who joins another container's namespaces has that one's user namespace too: the kernel gives
    rights over a namespace only to the user namespace that made it.

    Args:
        default: what the setting says for containers that say nothing.
        find: a container by its id.
        others: all that there are, whose ranges are taken.

    Raises:
        InvalidInput, Conflict: in Docker's words where it has some.
    """
    asked = host_config.get("UsernsMode") or ""
    size = _size(asked or default)
    joined = [find(other) for name in _SHARED if (other := neighbour(host_config.get(name)))]
    if joined and asked != HOST:
        ids = _shared(joined, explicit=bool(asked))
        if ids is not None:
            _check_own(host_config)
        return ids
    if size is None:
        return None
    _check_own(host_config)
    return free_range([it.id_range for it in others if it.id_range is not None], size)


def free_range(taken: Iterable[IdRange], size: int) -> IdRange:
    """The lowest range of `size` ids that meets none of `taken`. Raises Conflict."""
    first = _FIRST
    for other in sorted(taken, key=lambda it: it.first):
        if other.first - first >= size:
            break
        first = max(first, -(-(other.first + other.size) // _STEP) * _STEP)
    if first + size > _LAST:
        raise Conflict(
            "there are no ids left for one more user namespace", hint="remove containers"
        )
    return IdRange(first, size)


def user_namespace(container: Container) -> tuple[list[Json], Json]:
    """(its entry in `linux.namespaces`, the mappings in `linux`); both empty without one."""
    ids = container.id_range
    if ids is None:
        return [], {}
    modes = (container.host_config.get(name) for name in _SHARED)
    owner = next((mode for mode in modes if neighbour(mode)), None)
    mapping = [{"containerID": 0, "hostID": ids.first, "size": ids.size}]
    item = {"type": "user"} | ({"path": owner} if owner else {})
    return [item], {"uidMappings": mapping, "gidMappings": mapping}


def _shared(joined: list[Container], *, explicit: bool) -> IdRange | None:
    ranges = {container.id_range for container in joined}
    if len(ranges) > 1:
        names = " and ".join(container.name for container in joined)
        raise Conflict(f"cannot join namespaces of {names}: their user namespaces differ")
    (theirs,) = ranges
    if theirs is None and explicit:
        raise Conflict(
            f"cannot join namespaces of {joined[0].name} in a user namespace: it has none",
            hint="leave out --userns, or start that container with --userns private",
        )
    return theirs


def _size(mode: str) -> int | None:
    """How many ids the mode wants; None: it wants no user namespace. Raises InvalidInput."""
    if mode == PRIVATE:
        return SIZE
    match = _AUTO.fullmatch(mode)
    if match is None:
        return None
    size = int(match[1]) if match[1] else SIZE
    if not _SIZES[0] <= size <= _SIZES[1]:
        raise InvalidInput(f"invalid USER mode: {mode}: a size is {_SIZES[0]} to {_SIZES[1]} ids")
    return size


def _check_own(host_config: Mapping[str, Any]) -> None:
    if host_config.get("Privileged"):
        raise InvalidInput(
            "privileged mode is incompatible with user namespaces. You must run the container in "
            "the host namespace when running privileged mode",
            hint="add --userns host",
        )
    for name, words in _NOT_THE_HOSTS:
        if host_config.get(name) == HOST:
            raise InvalidInput(
                f"cannot share {words} when user namespaces are enabled", hint="add --userns host"
            )
