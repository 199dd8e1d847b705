"""qemu.json: what a later engine must know of a QEMU that outlived this one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wherry.osutil import ProcessIdentity, atomic_write


@dataclass(frozen=True, slots=True)
class QemuRecord:
    """A started QEMU.

    Attributes:
        identity: pid and start time.
        boot: random, names this boot.
        image_key, agent_digest: what was booted.
        accel: what it runs on.
        started_ns: when, since the epoch.
        argv: for people.
        ready: the guest was set up; one that was not is of no use to a later engine.
        config: the MachineConfig that it was started with; None: an older engine started it.
    """

    identity: ProcessIdentity
    boot: str
    image_key: str
    agent_digest: str
    accel: str
    started_ns: int
    argv: tuple[str, ...]
    ready: bool = False
    config: Mapping[str, Any] | None = None


def write_record(file: Path, record: QemuRecord) -> None:
    atomic_write(file, json.dumps(asdict(record), indent=1).encode() + b"\n")


def read_record(file: Path) -> QemuRecord | None:
    """None when there is none, or none that can be read (then its QEMU is found by its sockets)."""
    try:
        data: dict[str, Any] = json.loads(file.read_bytes())
        return QemuRecord(
            **{
                **data,
                "identity": ProcessIdentity(**data["identity"]),
                "argv": tuple(data["argv"]),
            }
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
