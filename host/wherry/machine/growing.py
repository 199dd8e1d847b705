"""A running machine's data disk made larger at once: QEMU's disk, then the guest's file system."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from wherry.machine.argv import DATA_DISK_SERIAL
from wherry.machine.boot import RunningQemu
from wherry.machine.config import MachineConfig
from wherry.machine.disk import disk_size
from wherry.machine.guest import LinkPort
from wherry.machine.record import QemuRecord, write_record

_GIB = 1 << 30
_NODE = "data"
"""`argv.DATA_DISK_NODE`"""
_RESIZE_TIMEOUT = 600.0
_QMP_TIMEOUT = 60.0


async def apply_at_once(
    vm: RunningQemu, link: LinkPort, config: MachineConfig, record_file: Path
) -> QemuRecord:
    """Do what a running machine can take of its new configuration: a larger disk.

    Returns:
        The record of what is in force now; it is written.

    Raises:
        MachineError, LinkError: QEMU or the guest refuses; the next start tries again.
    """
    now: Mapping[str, Any] = vm.record.config or {**asdict(config), "disk_gib": 0}
    if config.disk_gib <= now["disk_gib"]:
        return vm.record
    size = config.disk_gib * _GIB
    await vm.qmp.execute("block_resize", {"node-name": _NODE, "size": size}, timeout=_QMP_TIMEOUT)
    await fill_disk(link, size)
    record = replace(vm.record, config={**now, "disk_gib": config.disk_gib})
    await asyncio.to_thread(write_record, record_file, record)
    return record


async def fill_disk(link: LinkPort, size: int) -> None:
    """Make the guest's file system as large as its disk, of `size` bytes. Raises LinkError."""
    params = {"disk_serial": DATA_DISK_SERIAL, "bytes": size}
    await link.call("disk.grow", params, timeout=_RESIZE_TIMEOUT)


async def fill_disk_of(link: LinkPort, data_disk: Path) -> None:
    """As `fill_disk`, with the size that the image has. Raises LinkError, StorageError."""
    await fill_disk(link, disk_size(data_disk))
