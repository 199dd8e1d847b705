"""`docker update`: new limits and another restart policy for a container. Pure.

The rules are the reference engine's (moby: container/container_unix.go, UpdateContainer).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wherry.engine.blockio import check_block_io
from wherry.engine.config import checked_host_config
from wherry.engine.model import Json
from wherry.engine.policies import NO, check_restart_policy
from wherry.errors import Conflict, InvalidInput

LIMITS = (
    "CpuShares", "CpuPeriod", "CpuQuota", "NanoCpus", "CpusetCpus", "CpusetMems", "Memory",
    "MemorySwap", "MemoryReservation", "PidsLimit", "BlkioWeight",
)  # fmt: skip

_CPU_CONFLICTS = (
    ("NanoCpus", "CpuPeriod", "Nano CPUs cannot be updated as CPU Period has already been set"),
    ("NanoCpus", "CpuQuota", "Nano CPUs cannot be updated as CPU Quota has already been set"),
    ("CpuPeriod", "NanoCpus", "CPU Period cannot be updated as NanoCPUs has already been set"),
    ("CpuQuota", "NanoCpus", "CPU Quota cannot be updated as NanoCPUs has already been set"),
)


def updated_host_config(host_config: Mapping[str, Any], changes: Mapping[str, Any]) -> Json:
    """`host_config` under `changes` (of the body of an update request); 0 and empty change nothing.

    Raises:
        InvalidInput, Conflict: in Docker's words.
    """
    for new, old, message in _CPU_CONFLICTS:
        if (changes.get(new) or 0) > 0 and (host_config.get(old) or 0) > 0:
            raise Conflict(f"Conflicting options: {message}")
    _check_memory(host_config, changes)
    updated = dict(host_config)
    for name in LIMITS:
        value = changes.get(name)
        if value or (name == "PidsLimit" and value is not None):
            updated[name] = value
    policy = changes.get("RestartPolicy") or {}
    if policy.get("Name"):
        if host_config.get("AutoRemove") and policy["Name"] != NO:
            raise Conflict(
                "Restart policy cannot be updated because AutoRemove is enabled for the container"
            )
        updated["RestartPolicy"] = policy
        check_restart_policy(updated)
    check_block_io(updated)
    return checked_host_config(updated)


def changes_limits(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return any((before.get(name) or 0) != (after.get(name) or 0) for name in LIMITS)


def _check_memory(host_config: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    memory, swap = changes.get("Memory") or 0, changes.get("MemorySwap") or 0
    had = host_config.get("MemorySwap") or 0
    if memory < 0:
        raise InvalidInput("Minimum memory limit allowed is 6MB")
    if memory > had and not swap and had != -1:
        raise Conflict(
            "Memory limit should be smaller than already set memoryswap limit, "
            "update the memoryswap at the same time"
        )
