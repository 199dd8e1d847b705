"""Health checks: when to probe, and what the results make of a container. Docker's rules.

`Health` is pure: results in, a status out. `Monitor` adds the timers; how a probe is run is its
caller's (`wherry_guest.agent.probes`). Defaults and rules are the reference engine's (moby:
daemon/health.go).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from wherry_guest.agent.calls import Params
from wherry_guest.channel import CallError
from wherry_guest.loop import Loop, Timer

STARTING: Final = "starting"
HEALTHY: Final = "healthy"
UNHEALTHY: Final = "unhealthy"

DEFAULT_INTERVAL: Final = 30.0
DEFAULT_TIMEOUT: Final = 30.0
DEFAULT_START_PERIOD: Final = 0.0
DEFAULT_START_INTERVAL: Final = 5.0
DEFAULT_RETRIES: Final = 3

KEEP_RESULTS: Final = 5
OUTPUT_LIMIT: Final = 4096
"""Bytes of a probe's output that are kept."""

_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Check:
    """What to probe with, and how often. Seconds; `process` is an OCI process object."""

    process: dict[str, Any]
    interval: float = DEFAULT_INTERVAL
    timeout: float = DEFAULT_TIMEOUT
    start_period: float = DEFAULT_START_PERIOD
    start_interval: float = DEFAULT_START_INTERVAL
    retries: int = DEFAULT_RETRIES

    @classmethod
    def read(cls, values: Mapping[str, Any] | None) -> Check | None:
        """From a call's `health`; 0 and absent mean the default. Raises CallError `invalid`."""
        if values is None:
            return None
        params = Params(values)
        return cls(
            params.mapping("process"),
            _seconds(params, "interval_ns", DEFAULT_INTERVAL),
            _seconds(params, "timeout_ns", DEFAULT_TIMEOUT),
            _seconds(params, "start_period_ns", DEFAULT_START_PERIOD),
            _seconds(params, "start_interval_ns", DEFAULT_START_INTERVAL),
            max(0, params.optional_number("retries") or 0) or DEFAULT_RETRIES,
        )


def _seconds(params: Params, name: str, default: float) -> float:
    value = params.optional_number(name) or 0
    if value < 0:
        raise CallError("invalid", f"health.{name} is negative")
    return value / _NS or default


@dataclass(frozen=True, slots=True)
class Result:
    """One probe. `exit_code` 0: healthy; -1: it could not be run, or did not end in time."""

    start_ns: int
    end_ns: int
    exit_code: int
    output: str


class Health:
    """A container's health.

    Attributes:
        changes: how often the status has changed in this run: orders what is told of it.
    """

    __slots__ = ("changes", "failing_streak", "log", "status")

    def __init__(self) -> None:
        self.status = STARTING
        self.failing_streak = 0
        self.changes = 0
        self.log: list[Result] = []

    def restart(self) -> None:
        """The container runs anew; earlier results stay to be seen."""
        self.status, self.failing_streak, self.changes = STARTING, 0, 0

    def take(self, result: Result, check: Check, since_start: float) -> bool:
        """Note a result; True when the status has changed.

        Args:
            since_start: seconds from the container's start to the probe's.
        """
        before = self.status
        self.log = [*self.log, result][-KEEP_RESULTS:]
        if result.exit_code == 0:
            self.failing_streak, self.status = 0, HEALTHY
        elif self.status != STARTING or since_start >= check.start_period:
            self.failing_streak += 1
            if self.failing_streak >= check.retries:
                self.status = UNHEALTHY
        self.changes += self.status != before
        return self.status != before

    def as_json(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "failing_streak": self.failing_streak,
            "changes": self.changes,
            "log": [asdict(result) for result in self.log],
        }

    @classmethod
    def load(cls, saved: Mapping[str, Any]) -> Health:
        """What `as_json` gave."""
        it = cls()
        it.status, it.failing_streak = saved["status"], saved["failing_streak"]
        it.changes = saved["changes"]
        it.log = [Result(**values) for values in saved["log"]]
        return it


class Monitor:
    """Probes one container at its intervals, one probe at a time.

    Args:
        age: seconds that the container has run already.
        probe: runs one probe and calls back with (exit code, output), exactly once.
        on_result: called after each result; True: the status has changed.
    """

    def __init__(
        self,
        loop: Loop,
        check: Check,
        health: Health,
        age: float,
        probe: Callable[[Callable[[int, str], None]], None],
        on_result: Callable[[bool], None],
    ) -> None:
        self._loop = loop
        self._check = check
        self._health = health
        self._started = loop.time() - age
        self._probe = probe
        self._on_result = on_result
        self._timer: Timer | None = None
        self._stopped = False
        self._wait()

    def stop(self) -> None:
        """No probe begins any more; one that is under way counts for nothing."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        starting = (
            self._health.status == STARTING
            and self._loop.time() - self._started < self._check.start_period
        )
        seconds = self._check.start_interval if starting else self._check.interval
        self._timer = self._loop.call_later(seconds, self._begin)

    def _begin(self) -> None:
        if self._stopped:
            return
        began, start_ns = self._loop.time(), time.time_ns()

        def ended(exit_code: int, output: str) -> None:
            if self._stopped:
                return
            result = Result(start_ns, time.time_ns(), exit_code, output)
            changed = self._health.take(result, self._check, began - self._started)
            self._on_result(changed)
            if not self._stopped:
                self._wait()

        self._probe(ended)
