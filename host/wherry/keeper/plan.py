"""What the engine tells the keeper, and what the keeper answers once; JSON, both ways."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

HOST = "127.0.0.1"


def port_mark(chardev: str) -> str:
    """What stands for a chardev's port on the command line, since the keeper chooses it."""
    return f"@{chardev}@"


@dataclass(frozen=True, slots=True)
class Plan:
    """How to start QEMU, and where its chardevs shall answer.

    Attributes:
        argv: QEMU's command line, with port marks.
        env: its environment; None: ours.
        monitors: chardevs that speak QMP, to the socket or pipe each answers on; the first one
            is asked who QEMU is.
        streams: the same of those that carry bytes.
    """

    argv: list[str]
    env: dict[str, str] | None
    monitors: dict[str, str]
    streams: dict[str, str]


@dataclass(frozen=True, slots=True)
class Report:
    """QEMU runs, and all its chardevs answer."""

    pid: int
    start_time: str
    argv: list[str]


def dump(value: Plan | Report) -> bytes:
    """One line."""
    return json.dumps(asdict(value)).encode() + b"\n"


def load_plan(data: bytes) -> Plan:
    return Plan(**json.loads(data))


def load_report(data: bytes) -> Report:
    return Report(**json.loads(data))
