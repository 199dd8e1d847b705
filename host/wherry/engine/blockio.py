"""Limits of block I/O: Docker's Blkio fields. Pure.

A weight is the spec's own; limits of a device name it by its path in the machine, and which numbers
that has is the guest's to know: the agent finds them at the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wherry.engine.model import Json
from wherry.errors import InvalidInput

_WEIGHTS = (10, 1000)
"""moby: daemon/daemon_unix.go, verifyPlatformContainerResources."""

_MAX_RATE = 2**64 - 1

FIELDS: Mapping[str, tuple[str, str]] = {
    "BlkioWeightDevice": ("weightDevice", "Weight"),
    "BlkioDeviceReadBps": ("throttleReadBpsDevice", "Rate"),
    "BlkioDeviceWriteBps": ("throttleWriteBpsDevice", "Rate"),
    "BlkioDeviceReadIOps": ("throttleReadIOPSDevice", "Rate"),
    "BlkioDeviceWriteIOps": ("throttleWriteIOPSDevice", "Rate"),
}
"""Docker's field to the one of `linux.resources.blockIO`, and the key of its number."""


def check_block_io(host_config: Mapping[str, Any]) -> None:
    """Raises InvalidInput."""
    weight = host_config.get("BlkioWeight") or 0
    if weight:
        _check_weight(weight)
    block_io_params(host_config)


def block_io(host_config: Mapping[str, Any]) -> Json:
    """`blockIO` of the resources, but for what is said of single devices."""
    weight = host_config.get("BlkioWeight") or 0
    return {"weight": weight} if weight else {}


def block_io_params(host_config: Mapping[str, Any]) -> list[Json]:
    """`block_io` of the agent's `container.start`. Raises InvalidInput."""
    found = []
    for field, (limit, key) in FIELDS.items():
        for item in host_config.get(field) or ():
            path, value = item.get("Path"), item.get(key)
            if not isinstance(path, str) or not path.startswith("/"):
                raise InvalidInput(f"{field}: {path!r} is no path of a device")
            if not isinstance(value, int) or not 0 <= value <= _MAX_RATE:
                raise InvalidInput(f"{field}: {path} has no valid {key}")
            if not value:
                continue  # Docker's word for no limit
            if key == "Weight":
                _check_weight(value)
            found.append({"path": path, "limit": limit, "value": value})
    return found


def _check_weight(weight: int) -> None:
    if not _WEIGHTS[0] <= weight <= _WEIGHTS[1]:
        raise InvalidInput(f"range of blkio weight is from {_WEIGHTS[0]} to {_WEIGHTS[1]}")
