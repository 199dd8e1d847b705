"""QEMU: find it, probe accelerators, boot the VM, plug layers. See docs/machine.md."""

from __future__ import annotations

from wherry.machine.config import (
    MachineConfig,
    create_machine,
    default_config,
    list_machines,
    machine_names,
    remove_machine,
)
from wherry.machine.layers import LayerDisk
from wherry.machine.machine import Machine
from wherry.machine.states import MachineState

__all__ = [
    "LayerDisk",
    "Machine",
    "MachineConfig",
    "MachineState",
    "create_machine",
    "default_config",
    "list_machines",
    "machine_names",
    "remove_machine",
]
