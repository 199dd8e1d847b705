"""What `POST /containers/create` may carry: a rule per field of Docker's Config and HostConfig.

A field that is not implemented must stand at its default, else the request is refused with a 501
that names the field: nothing is accepted and ignored. The names and defaults are those of the
Engine API 1.50; inspect shows the same fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from wherry.errors import InvalidInput, NotImplementedYet


@dataclass(frozen=True, slots=True)
class Rule:
    """`default`: what inspect shows for a missing field; `accepts`: what is implemented."""

    default: Any
    accepts: Callable[[Any], bool]


def _anything(_value: Any) -> bool:
    return True


def _empty(value: Any) -> bool:
    """Null, false, zero, the empty string, list or object: what clients send for "not set"."""
    return not value


def _only(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: not value or value in allowed


def _network_mode(value: Any) -> bool:
    return not value or value in ("default", "none", "host") or value.startswith("container:")


CONFIG: Mapping[str, Rule] = {
    "Hostname": Rule("", _anything),
    "Domainname": Rule("", _anything),
    "User": Rule("", _anything),
    "AttachStdin": Rule(False, _anything),
    "AttachStdout": Rule(False, _anything),
    "AttachStderr": Rule(False, _anything),
    "ExposedPorts": Rule(None, _anything),  # a note to readers; publishing is PortBindings
    "Tty": Rule(False, _anything),
    "OpenStdin": Rule(False, _anything),
    "StdinOnce": Rule(False, _anything),
    "Env": Rule(None, _anything),
    "Cmd": Rule(None, _anything),
    "Healthcheck": Rule(None, _anything),
    "ArgsEscaped": Rule(False, _empty),
    "Image": Rule("", _anything),
    "Volumes": Rule(None, _anything),
    "WorkingDir": Rule("", _anything),
    "Entrypoint": Rule(None, _anything),
    "NetworkDisabled": Rule(False, _anything),
    "MacAddress": Rule("", _empty),
    "OnBuild": Rule(None, _empty),
    "Labels": Rule({}, _anything),
    "StopSignal": Rule("", _anything),
    "StopTimeout": Rule(None, _anything),
    "Shell": Rule(None, _anything),
}

HOST_CONFIG: Mapping[str, Rule] = {
    "Binds": Rule(None, _anything),
    "ContainerIDFile": Rule("", _anything),  # the client's own affair
    "LogConfig": Rule({"Type": "json-file", "Config": {}}, _anything),
    "NetworkMode": Rule("default", _network_mode),
    "PortBindings": Rule({}, _empty),
    "RestartPolicy": Rule({"Name": "no", "MaximumRetryCount": 0}, _anything),
    "AutoRemove": Rule(False, _anything),
    "VolumeDriver": Rule("", _anything),
    "VolumesFrom": Rule(None, _anything),
    "ConsoleSize": Rule([0, 0], _anything),
    "CapAdd": Rule(None, _anything),
    "CapDrop": Rule(None, _anything),
    "CgroupnsMode": Rule("private", _anything),
    "Dns": Rule([], _anything),
    "DnsOptions": Rule([], _anything),
    "DnsSearch": Rule([], _anything),
    "ExtraHosts": Rule(None, _anything),
    "GroupAdd": Rule(None, _anything),
    "IpcMode": Rule("private", _anything),
    "Cgroup": Rule("", _empty),
    "Links": Rule(None, _empty),
    "OomScoreAdj": Rule(0, _anything),
    "PidMode": Rule("", _anything),
    "Privileged": Rule(False, _anything),
    "PublishAllPorts": Rule(False, _empty),
    "ReadonlyRootfs": Rule(False, _anything),
    "SecurityOpt": Rule(None, _anything),
    "StorageOpt": Rule(None, _empty),
    "Tmpfs": Rule(None, _anything),
    "UTSMode": Rule("", _anything),
    "UsernsMode": Rule("", _anything),
    "ShmSize": Rule(64 * 1024 * 1024, _anything),
    "Sysctls": Rule(None, _anything),
    "Runtime": Rule("wherry", _only("wherry", "runc")),
    "Isolation": Rule("", _only("default")),
    "CpuShares": Rule(0, _anything),
    "Memory": Rule(0, _anything),
    "NanoCpus": Rule(0, _anything),
    "CgroupParent": Rule("", _empty),
    "BlkioWeight": Rule(0, _anything),
    "BlkioWeightDevice": Rule([], _anything),
    "BlkioDeviceReadBps": Rule([], _anything),
    "BlkioDeviceWriteBps": Rule([], _anything),
    "BlkioDeviceReadIOps": Rule([], _anything),
    "BlkioDeviceWriteIOps": Rule([], _anything),
    "CpuPeriod": Rule(0, _anything),
    "CpuQuota": Rule(0, _anything),
    "CpuRealtimePeriod": Rule(0, _empty),
    "CpuRealtimeRuntime": Rule(0, _empty),
    "CpusetCpus": Rule("", _anything),
    "CpusetMems": Rule("", _anything),
    "Devices": Rule([], _anything),
    "DeviceCgroupRules": Rule(None, _anything),
    "DeviceRequests": Rule(None, _empty),
    "KernelMemory": Rule(0, _empty),
    "KernelMemoryTCP": Rule(0, _empty),
    "MemoryReservation": Rule(0, _anything),
    "MemorySwap": Rule(0, _anything),
    "MemorySwappiness": Rule(None, _only(-1)),
    "OomKillDisable": Rule(None, _empty),
    "Init": Rule(None, _anything),
    "PidsLimit": Rule(None, _anything),
    "Ulimits": Rule(None, _anything),
    "CpuCount": Rule(0, _empty),
    "CpuPercent": Rule(0, _empty),
    "IOMaximumIOps": Rule(0, _empty),
    "IOMaximumBandwidth": Rule(0, _empty),
    "Mounts": Rule(None, _anything),
    "MaskedPaths": Rule(None, _anything),
    "ReadonlyPaths": Rule(None, _anything),
    "Annotations": Rule(None, _anything),
}

_UPDATED = (
    "CpuShares", "CpuPeriod", "CpuQuota", "NanoCpus", "CpusetCpus", "CpusetMems", "Memory",
    "MemorySwap", "MemoryReservation", "PidsLimit", "BlkioWeight", "RestartPolicy",
)  # fmt: skip

UPDATE: Mapping[str, Rule] = {
    name: rule if name in _UPDATED else Rule(rule.default, lambda value: not value or value == -1)
    for name, rule in HOST_CONFIG.items()
}
"""Of the body of an update: limits and the restart policy."""

EXEC: Mapping[str, Rule] = {
    "Container": Rule("", _anything),  # docker-py repeats what stands in the path
    "AttachStdin": Rule(False, _anything),
    "AttachStdout": Rule(False, _anything),
    "AttachStderr": Rule(False, _anything),
    "Cmd": Rule(None, _anything),
    "Tty": Rule(False, _anything),
    "Env": Rule(None, _anything),
    "User": Rule("", _anything),
    "WorkingDir": Rule("", _anything),
    "Privileged": Rule(False, _anything),
    "DetachKeys": Rule("", _anything),
    "ConsoleSize": Rule(None, _anything),
    "Detach": Rule(False, _anything),  # older clients repeat the start's parameters
}

_LISTS_OF_TEXT = (
    "Env", "Cmd", "Entrypoint", "CapAdd", "CapDrop", "Binds", "VolumesFrom",
    "Dns", "DnsOptions", "DnsSearch", "ExtraHosts", "GroupAdd", "SecurityOpt", "DeviceCgroupRules",
    "MaskedPaths", "ReadonlyPaths",
)  # fmt: skip
_LISTS_OF_OBJECTS = (
    "Mounts", "Devices", "Ulimits", "BlkioWeightDevice", "BlkioDeviceReadBps",
    "BlkioDeviceWriteBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteIOps",
)  # fmt: skip
_OBJECTS = (
    "Labels", "Volumes", "Tmpfs", "Sysctls", "Annotations", "RestartPolicy", "LogConfig",
    "Healthcheck",
)  # fmt: skip
_NUMBERS = (
    "Memory", "MemorySwap", "NanoCpus", "CpuPeriod", "CpuQuota", "CpuShares", "PidsLimit",
    "ShmSize", "StopTimeout", "MemoryReservation", "OomScoreAdj", "BlkioWeight",
)  # fmt: skip


def check(rules: Mapping[str, Rule], values: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse what is not implemented.

    Raises:
        NotImplementedYet: a field, known or not, has a value that is not implemented.
        InvalidInput: a value is of the wrong type.
    """
    for name, value in values.items():
        field = f"{prefix}{name}"
        _check_type(field, name, value)
        rule = rules.get(name)
        if rule is None and not value:
            continue
        try:
            accepted = rule is not None and (value == rule.default or rule.accepts(value))
        except (AttributeError, TypeError) as error:
            raise InvalidInput(f"{field} has a value of the wrong type: {value!r}") from error
        if not accepted:
            raise NotImplementedYet(f"{field} is not implemented (got {value!r})")


def _check_type(field: str, name: str, value: Any) -> None:
    if value is None:
        return
    if name in _NUMBERS and (not isinstance(value, int) or isinstance(value, bool)):
        raise InvalidInput(f"{field} must be a number, not {value!r}")
    if name in _OBJECTS and not isinstance(value, dict):
        raise InvalidInput(f"{field} must be an object, not {value!r}")
    if name in _LISTS_OF_OBJECTS and not (
        isinstance(value, list) and all(isinstance(item, dict) for item in value)
    ):
        raise InvalidInput(f"{field} must be a list of objects, not {value!r}")
    if name in _LISTS_OF_TEXT and not (
        isinstance(value, list) and all(isinstance(item, str) for item in value)
    ):
        raise InvalidInput(f"{field} must be a list of strings, not {value!r}")


def check_networking(networking: Any) -> None:
    """Only the endpoint that clients always send, without options. Raises NotImplementedYet."""
    endpoints = (networking or {}).get("EndpointsConfig") or {}
    for network, options in endpoints.items():
        if network not in ("default", "none", "host", "bridge"):
            raise NotImplementedYet(
                f"NetworkingConfig.EndpointsConfig.{network} is not implemented"
            )
        for name, value in (options or {}).items():
            if value:
                raise NotImplementedYet(
                    f"NetworkingConfig.EndpointsConfig.{network}.{name} is not implemented"
                )


def with_defaults(rules: Mapping[str, Rule], values: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of `rules`, as inspect shows them: the client's value, else the default."""
    return {
        name: rule.default if values.get(name) is None else values[name]
        for name, rule in rules.items()
    }
