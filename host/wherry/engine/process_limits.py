"""Limits of processes and kernel parameters: Docker's Ulimits, Sysctls, OomScoreAdj. Pure.

Only parameters that a namespace of the container's own holds can be set; the list is the reference
engine's (docker/cli: opts.ValidateSysctl; runc: libcontainer/configs/validate).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wherry.engine.model import Json
from wherry.errors import InvalidInput

_ULIMITS = frozenset(
    (
        "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc",
        "rss", "rtprio", "rttime", "sigpending", "stack",
    )
)  # fmt: skip
_UNLIMITED = 2**64 - 1
"""RLIM_INFINITY, asm-generic/resource.h."""

_IPC_SYSCTLS = frozenset(
    (
        "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
        "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
    )
)  # fmt: skip


def check_limits(host_config: Mapping[str, Any]) -> None:
    """Raises InvalidInput."""
    rlimits(host_config)
    score = host_config.get("OomScoreAdj") or 0
    if not -1000 <= score <= 1000:
        raise InvalidInput(f"Invalid value {score}, range for oom score adj is [-1000, 1000]")
    for name in host_config.get("Sysctls") or {}:
        _check_sysctl(name, host_config)


def rlimits(host_config: Mapping[str, Any]) -> list[Json]:
    """`process.rlimits`. Raises InvalidInput."""
    limits = []
    for item in host_config.get("Ulimits") or ():
        name, soft, hard = str(item.get("Name")), item.get("Soft") or 0, item.get("Hard") or 0
        if name not in _ULIMITS:
            raise InvalidInput(f"invalid ulimit type: {name}")
        soft, hard = (_UNLIMITED if number == -1 else number for number in (soft, hard))
        if not 0 <= soft <= hard:
            raise InvalidInput(
                f"ulimit soft limit must be less than or equal to hard limit: {name}"
            )
        limits.append({"type": f"RLIMIT_{name.upper()}", "soft": soft, "hard": hard})
    return limits


def _check_sysctl(name: str, host_config: Mapping[str, Any]) -> None:
    if name.startswith("net."):
        namespace, mode = "network", host_config.get("NetworkMode")
    elif name.startswith("fs.mqueue.") or name in _IPC_SYSCTLS:
        namespace, mode = "ipc", host_config.get("IpcMode")
    else:
        raise InvalidInput(
            f"sysctl '{name}' is not allowed: it would change the whole machine",
            hint="net.*, fs.mqueue.* and System V IPC's parameters are a container's own",
        )
    if mode == "host" or (mode or "").startswith("container:"):
        raise InvalidInput(f'sysctl "{name}" is not allowed without an own {namespace} namespace')
