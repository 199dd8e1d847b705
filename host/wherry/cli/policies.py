"""The flags of `run` and `create` about a container's life: restarts, health, logs, memory floor.
Pure: text in, Config and HostConfig out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from wherry.errors import InvalidInput
from wherry.units import parse_duration, parse_size

FLAGS = [
    click.option("--restart", default="no", metavar="POLICY", show_default=True,
                 help="no, always, unless-stopped, on-failure[:MAX]."),
    click.option("--health-cmd", metavar="COMMAND", help="The command that checks its health."),
    click.option("--health-interval", metavar="TIME", help="Between two checks (30s)."),
    click.option("--health-timeout", metavar="TIME", help="That a check may take (30s)."),
    click.option("--health-retries", type=int, default=0, help="Failures until unhealthy (3)."),
    click.option("--health-start-period", metavar="TIME", help="In which failures do not count."),
    click.option("--health-start-interval", metavar="TIME",
                 help="Between two checks in the start period (5s)."),
    click.option("--no-healthcheck", is_flag=True, help="Not even the image's."),
    click.option("--log-driver", metavar="DRIVER", help="json-file (the default), local, none."),
    click.option("--log-opt", multiple=True, metavar="K=V",
                 help="max-size, max-file, mode, labels, tag, …"),
    click.option("--memory-reservation", metavar="SIZE", help="Memory that it keeps if it can."),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class PolicyFlags:
    """The flags as they were given."""

    restart: str = "no"
    health_cmd: str | None = None
    health_interval: str | None = None
    health_timeout: str | None = None
    health_retries: int = 0
    health_start_period: str | None = None
    health_start_interval: str | None = None
    no_healthcheck: bool = False
    log_driver: str | None = None
    log_opt: tuple[str, ...] = ()
    memory_reservation: str | None = None

    def config(self) -> dict[str, Any]:
        """The part of Config. Raises InvalidInput."""
        return {"Healthcheck": self._healthcheck()}

    def host_config(self) -> dict[str, Any]:
        """The part of HostConfig. Raises InvalidInput."""
        options = dict(_option(text) for text in self.log_opt)
        reservation = self.memory_reservation
        return {
            "RestartPolicy": restart_policy(self.restart),
            "LogConfig": {"Type": self.log_driver or "", "Config": options},
            "MemoryReservation": parse_size(reservation) if reservation else 0,
        }

    def _healthcheck(self) -> dict[str, Any] | None:
        durations = {
            "Interval": self.health_interval,
            "Timeout": self.health_timeout,
            "StartPeriod": self.health_start_period,
            "StartInterval": self.health_start_interval,
        }
        check: dict[str, Any] = {
            name: parse_duration(text) for name, text in durations.items() if text
        }
        if self.health_retries:
            check["Retries"] = self.health_retries
        if self.health_cmd:
            check["Test"] = ["CMD-SHELL", self.health_cmd]
        if self.no_healthcheck:
            if check:
                raise InvalidInput("--no-healthcheck conflicts with --health-* options")
            return {"Test": ["NONE"]}
        return check or None


def restart_policy(text: str) -> dict[str, Any]:
    """`on-failure:3` as Docker's object. Raises InvalidInput when the number is none."""
    name, colon, maximum = text.partition(":")
    if colon and not maximum.isdecimal():
        raise InvalidInput(
            f"invalid restart policy {text!r}", hint="the number of tries comes behind the colon"
        )
    return {"Name": name, "MaximumRetryCount": int(maximum) if colon else 0}


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidInput(f"bad log option {text!r}", hint="write NAME=VALUE")
    return name, value
