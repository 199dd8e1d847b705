"""Capabilities that a spec asks for and we do not have: the specification wants a warning.

https://github.com/opencontainers/runtime-spec/blob/v1.2.0/config.md#linux-process
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from wherry_guest.core.capabilities import NAMES, CapabilitySets
from wherry_guest.core.spec import Process, Spec, Warn

ALL: Final = (1 << len(NAMES)) - 1


def granted(spec: Spec, warn: Warn) -> Process:
    """The spec's process with the capabilities that we can give."""
    return limited(spec.process, spec.namespaces.own("user"), warn)


def limited(process: Process, user_namespace: bool, warn: Warn) -> Process:
    """`process` without the capabilities that cannot be given.

    Args:
        user_namespace: it has one of its own, in which there are all.
    """
    own = ALL if user_namespace else _permitted()
    sets = process.capabilities
    masks = (sets.bounding, sets.effective, sets.inheritable, sets.permitted, sets.ambient)
    missing = 0
    for mask in masks:
        missing |= mask & ~own
    if missing:
        warn(f"process.capabilities: this runtime has not {_names(missing)} itself to give")
    # capabilities(7): ambient may hold only what is permitted and inheritable
    ambient = sets.ambient & own & sets.permitted & sets.inheritable
    if lost := sets.ambient & own & ~ambient:
        words = "is not permitted and inheritable as well"
        warn(f"process.capabilities.ambient: {_names(lost)} {words}")
    bounding, effective, inheritable, permitted = (mask & own for mask in masks[:4])
    kept = CapabilitySets(bounding, effective, inheritable, permitted, ambient)
    return process if kept == sets else replace(process, capabilities=kept)


def _names(mask: int) -> str:
    return ", ".join(name for number, name in enumerate(NAMES) if mask >> number & 1)


def _permitted() -> int:
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("CapPrm:"):
            return int(line.split()[1], 16)
    raise OSError("/proc/self/status has no CapPrm")
