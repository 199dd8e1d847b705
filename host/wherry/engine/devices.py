"""Devices of a container: Docker's Devices and DeviceCgroupRules. Pure.

Which numbers a path has is the guest's to know: the agent finds them at the start. The rules that
every container has are runc's (Documentation/admin-guide/devices.txt for the numbers).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from wherry.engine.model import Json
from wherry.errors import InvalidInput

_OPEN_DEVICES = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, None))
"""null, zero, full, random, urandom, tty, console, ptmx and the pseudo terminals."""

_RULE = re.compile(r"([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})")
_PERMISSIONS = re.compile(r"[rwm]{1,3}")


def check_devices(host_config: Mapping[str, Any]) -> None:
    """Raises InvalidInput for a device or a rule that cannot be one."""
    device_params(host_config)
    for text in host_config.get("DeviceCgroupRules") or ():
        _rule(text)


def device_params(host_config: Mapping[str, Any]) -> list[Json]:
    """`devices` of the agent's `container.start`. Raises InvalidInput."""
    devices = []
    for item in host_config.get("Devices") or ():
        source = str(item.get("PathOnHost") or "")
        target = str(item.get("PathInContainer") or source)
        permissions = str(item.get("CgroupPermissions") or "rwm")
        if not source.startswith("/") or not target.startswith("/"):
            raise InvalidInput(f"invalid device specification: {source}:{target}")
        if not _PERMISSIONS.fullmatch(permissions):
            raise InvalidInput(f"invalid device mode: {permissions}", hint="letters of rwm")
        devices.append({"path": source, "target": target, "permissions": permissions})
    return devices


def device_rules(host_config: Mapping[str, Any]) -> list[Json]:
    """`linux.resources.devices`; none at all for a privileged container: everything is allowed.

    Every node may be made, few may be opened: the machine's disks are among the others.
    """
    if host_config.get("Privileged"):
        return []
    rules: list[Json] = [{"allow": False, "access": "rwm"}]
    rules += [{"allow": True, "type": kind, "access": "m"} for kind in ("c", "b")]
    for major, minor in _OPEN_DEVICES:
        rule = {"allow": True, "type": "c", "major": major, "access": "rwm"}
        rules.append(rule if minor is None else rule | {"minor": minor})
    texts: Sequence[str] = host_config.get("DeviceCgroupRules") or ()
    return rules + [_rule(text) for text in texts]


def _rule(text: str) -> Json:
    """`c 42:* rmw`. Raises InvalidInput."""
    match = _RULE.fullmatch(text)
    if match is None:
        raise InvalidInput(f"invalid device cgroup rule format: '{text}'", hint="as in c 42:* rmw")
    rule: Json = {"allow": True, "type": match[1], "access": match[4]}
    for name, number in (("major", match[2]), ("minor", match[3])):
        if number != "*":
            rule[name] = int(number)
    return rule
