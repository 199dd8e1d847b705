"""What `machine inspect` shows: what is in force, and what the next start will change."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from wherry.machine.changing import pending
from wherry.machine.config import MachineConfig, config_from_json
from wherry.machine.record import QemuRecord
from wherry.machine.states import Running
from wherry.paths import MachinePaths


def configuration_facts(
    config: MachineConfig, paths: MachinePaths, record: QemuRecord | None
) -> dict[str, Any]:
    """The configuration in force, as JSON; memory in MiB, disk in GiB.

    Args:
        config: of the next start.
        record: of the QEMU that runs; None: the machine is off.
    """
    now = running_config(record, config)
    return {
        **asdict(now),
        "pending": pending(now, config),
        "directory": str(paths.root),
        "data_disk": str(paths.data_disk),
        "console_log": str(paths.console_log),
        "api_socket": str(paths.api_socket),
        "rescue_socket": str(paths.rescue_socket),
    }


def running_facts(running: Running) -> dict[str, Any]:
    """About the QEMU that runs, and its guest. Times in ns since the epoch."""
    record = running.vm.record
    return {
        "accel": record.accel,
        "pid": record.identity.pid,
        "started_ns": record.started_ns,
        "restored": "-incoming" in record.argv,
        "image": record.image_key,
        "qemu": record.argv[0],
        "kernel_file": record.argv[record.argv.index("-kernel") + 1],
        "agent": running.link.peer.get("agent"),
        "layers": len(running.layers.attached),
        "highest_lun": running.layers.highest_lun,
        "hung": running.vitals.hung,
    }


def running_config(record: QemuRecord | None, following: MachineConfig) -> MachineConfig:
    """What the running machine was started with; one whose record does not say is taken to have
    what is written."""
    if record is None or record.config is None:
        return following
    return config_from_json(record.config)
