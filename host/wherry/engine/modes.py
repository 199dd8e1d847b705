"""Whose namespaces a container has: its own, the machine's, or another container's. Pure.

The words are the reference engine's (moby: api/types/container/hostconfig.go, runconfig). A
reference to another container is resolved to its id when the container is created, since names
change; the guest's agent turns the id into namespaces, when that container runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wherry.engine.model import SHORT_ID, Container, Json
from wherry.errors import Conflict, InvalidInput

OF_CONTAINER = "container:"

_KINDS = ("mount", "network", "uts", "pid", "ipc", "cgroup")
_FIELDS = {
    "network": "NetworkMode", "uts": "UTSMode", "pid": "PidMode", "ipc": "IpcMode",
    "cgroup": "CgroupnsMode",
}  # fmt: skip
_ALLOWED: Mapping[str, tuple[str, ...]] = {
    "IpcMode": ("", "private", "shareable", "host", "none"),
    "PidMode": ("", "private", "host"),
    "UTSMode": ("", "private", "host"),
    "CgroupnsMode": ("", "private", "host"),
}
_WORDS = {
    "IpcMode": "IPC mode", "PidMode": "PID mode", "UTSMode": "UTS mode",
    "CgroupnsMode": "cgroup namespace mode",
}  # fmt: skip
_JOINABLE = ("IpcMode", "PidMode")
_PRIVATE_BY_DEFAULT = ("IpcMode", "CgroupnsMode")

_NOT_WITH_A_CONTAINERS_NETWORK = (
    ("Dns", "dns"),
    ("ExtraHosts", "custom host-to-IP mapping"),
    ("Links", "container type network can't be used with links. This would result in"),
    ("PortBindings", "port publishing"),
)


def check_modes(config: Mapping[str, Any], host_config: Mapping[str, Any]) -> None:
    """What can be judged without knowing other containers. Raises InvalidInput."""
    for name, allowed in _ALLOWED.items():
        mode = host_config.get(name) or ""
        joins = name in _JOINABLE and neighbour(mode)
        if mode not in allowed and not joins:
            raise InvalidInput(f"invalid {_WORDS[name]}: {mode}")
    if host_config.get("UTSMode") == "host" and config.get("Hostname"):
        raise InvalidInput("conflicting options: hostname and the UTS mode")
    network = host_config.get("NetworkMode") or ""
    if network.startswith(OF_CONTAINER):
        if not neighbour(network):
            raise InvalidInput("Invalid network mode: invalid container format container:<name|id>")
        if config.get("Hostname"):
            raise InvalidInput("conflicting options: hostname and the network mode")
        for name, words in _NOT_WITH_A_CONTAINERS_NETWORK:
            if host_config.get(name):
                raise InvalidInput(f"conflicting options: {words} and the network mode")


def resolved_modes(
    config: Mapping[str, Any], host_config: Mapping[str, Any], find: Callable[[str], Container]
) -> tuple[Json, Json]:
    """Both with ids in place of references; who shares a network shares its host name.

    Raises:
        NotFound: of `find`.
        Conflict: a container whose IPC is to be joined does not share it.
    """
    named, resolved = dict(config), dict(host_config)
    for name in _PRIVATE_BY_DEFAULT:
        resolved[name] = resolved.get(name) or "private"
    for name in ("NetworkMode", *_JOINABLE):
        if reference := neighbour(resolved.get(name)):
            other = find(reference)
            if name == "IpcMode" and other.host_config.get("IpcMode") != "shareable":
                raise Conflict(
                    f"can't join IPC of container {other.id}: non-shareable IPC",
                    hint="create that container with --ipc shareable",
                )
            if name == "NetworkMode":
                named["Hostname"] = other.config.get("Hostname") or other.id[:SHORT_ID]
                named["Domainname"] = other.config.get("Domainname") or ""
            resolved[name] = f"{OF_CONTAINER}{other.id}"
    return named, resolved


def neighbour(mode: str | None) -> str:
    """The container that a mode names, "" when it names none."""
    mode = mode or ""
    return mode.removeprefix(OF_CONTAINER) if mode.startswith(OF_CONTAINER) else ""


def namespaces(host_config: Mapping[str, Any]) -> list[Json]:
    """`linux.namespaces`: what is not there is the machine's."""
    result: list[Json] = []
    for kind in _KINDS:
        mode = host_config.get(_FIELDS.get(kind, "")) or ""
        if neighbour(mode):
            result.append({"type": kind, "path": mode})
        elif mode != "host":
            result.append({"type": kind})
    return result
