"""Containers of other architectures than the machine's: what runs by itself, what is emulated."""

from __future__ import annotations

from wherry.engine.ports import MachinePort
from wherry.images.platform import Platform, default_platform


def native_platform(machine: MachinePort) -> Platform:
    """What the machine runs by itself."""
    architecture = machine.inspect().get("arch")
    return Platform("linux", architecture) if architecture else default_platform()
