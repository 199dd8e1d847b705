"""When an ended container starts again: Docker's restart policies and their back-off.

Pure: exits go in, delays come out; time is the caller's. The rules are the reference engine's
(moby: daemon/internal/restartmanager): 100 ms, doubled at each exit up to a minute, back at 100 ms
once the container ran for ten seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from wherry_guest.agent.calls import Params
from wherry_guest.channel import CallError

NAMES: Final = ("no", "always", "unless-stopped", "on-failure")

FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 60.0
STABLE_AFTER: Final = 10.0
"""Seconds: restartmanager.go's defaultTimeout, maxRestartTimeout, and the run that resets them."""


@dataclass(frozen=True, slots=True)
class Policy:
    """`maximum`: how often `on-failure` tries; 0: without end."""

    name: str = "no"
    maximum: int = 0

    @property
    def active(self) -> bool:
        return self.name != "no"

    @classmethod
    def read(cls, values: Mapping[str, Any] | None) -> Policy:
        """From a call's `restart` {name, max}. Raises CallError `invalid`."""
        if values is None:
            return cls()
        params = Params(values)
        name, maximum = params.text("name"), params.optional_number("max") or 0
        if name not in NAMES:
            raise CallError("invalid", f"restart.name {name!r} is none of {', '.join(NAMES)}")
        if maximum < 0:
            raise CallError("invalid", "restart.max is negative")
        return cls(name, maximum)


class Restarts:
    """One container's restarts since somebody started it.

    Attributes:
        count: how often the policy has started it again.
        by_user: somebody has signalled it: `unless-stopped` ends with that.
        ended: somebody has stopped it: every policy ends with that, until the next start.
    """

    __slots__ = ("by_user", "count", "delay", "ended", "policy")

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy or Policy()
        self.count = 0
        self.delay = 0.0
        self.by_user = False
        self.ended = False

    def after_exit(self, exit_code: int, ran: float) -> float | None:
        """The seconds until it is to start again, after a run of `ran` seconds; None: it is not."""
        if not self.policy.active or self.ended:
            return None
        if ran >= STABLE_AFTER:
            self.delay = 0.0
        self.delay = min(self.delay * 2, LONGEST_DELAY) if self.delay else FIRST_DELAY
        if not self._wanted(exit_code):
            return None
        self.count += 1
        return self.delay

    def _wanted(self, exit_code: int) -> bool:
        policy = self.policy
        if policy.name == "on-failure":
            return exit_code != 0 and (not policy.maximum or self.count < policy.maximum)
        return policy.name == "always" or not self.by_user

    def saved(self) -> dict[str, Any]:
        """As JSON, for the next agent."""
        return {
            "policy": asdict(self.policy),
            "count": self.count,
            "delay": self.delay,
            "by_user": self.by_user,
            "ended": self.ended,
        }

    @classmethod
    def load(cls, saved: Mapping[str, Any]) -> Restarts:
        """What `saved` gave."""
        it = cls(Policy(**saved["policy"]))
        it.count, it.delay = saved["count"], saved["delay"]
        it.by_user, it.ended = saved["by_user"], saved["ended"]
        return it
