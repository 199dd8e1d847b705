"""How a container ended, and how it fares: what the guest tells, checked. Pure.

The guest is not trusted: what is of the wrong shape is a LinkError.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wherry.engine.model import Json
from wherry.errors import LinkError

LOST_CODE = 137
"""Exit code of a container whose machine went away: as if it had got SIGKILL."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended.

    Attributes:
        started_ns: which run; None: the present one.
        log_bytes: None: unknown.
        log_lost: bytes of output that found no place (a full disk).
        restarting: its policy will start it again.
        restart_count: how often its policy has, or is about to; None: as before.
    """

    code: int
    finished_ns: int
    started_ns: int | None = None
    log_bytes: int | None = None
    oom: bool = False
    error: str = ""
    restarting: bool = False
    restart_count: int | None = None
    log_lost: int = 0
    health: Json | None = None

    @classmethod
    def lost(cls, error: str) -> Exit:
        """The machine went away."""
        return cls(LOST_CODE, time.time_ns(), error=error)

    @classmethod
    def from_payload(cls, payload: Any) -> Exit:
        """The payload of `container.exit`. Raises LinkError when the guest sent something else."""
        if not isinstance(payload, Mapping):
            raise LinkError("the guest sent an exit that is none")
        return cls(
            code=_count(payload, "exit_code"),
            finished_ns=_count(payload, "finished_ns"),
            started_ns=_count(payload, "started_ns"),
            log_bytes=_count(payload, "log_bytes"),
            oom=payload.get("oom") is True,
            error=str(payload.get("error") or ""),
            restarting=payload.get("restarting") is True,
            restart_count=_count(payload, "restart_count") if "restart_count" in payload else None,
            log_lost=_count(payload, "log_lost") if "log_lost" in payload else 0,
            health=read_health(payload.get("health")),
        )


def read_health(value: Any) -> Json | None:
    """A health that the guest told, checked; None when there is none."""
    if value is None:
        return None
    try:
        return {
            "status": str(value["status"]),
            "failing_streak": int(value["failing_streak"]),
            "changes": int(value["changes"]),
            "log": [
                {
                    "start_ns": int(result["start_ns"]),
                    "end_ns": int(result["end_ns"]),
                    "exit_code": int(result["exit_code"]),
                    "output": str(result["output"]),
                }
                for result in value["log"]
            ],
        }
    except (KeyError, TypeError, ValueError) as error:
        raise LinkError("the guest sent a container's health that is none") from error


def _count(payload: Mapping[str, Any], name: str) -> int:
    value = payload.get(name)
    if not isinstance(value, int) or value < 0:
        raise LinkError(f"the guest sent an exit without a valid {name}")
    return value
