"""When to try again: exponential backoff with jitter, Retry-After, and an end. Sans-I/O.

A transfer may fail `attempts` times in a row. Progress of at least `PROGRESS_BYTES` starts the
count anew, so that a long download survives many interruptions and a server that hands out a byte
at a time does not keep us for ever.
"""

from __future__ import annotations

import email.utils
import random
from dataclasses import dataclass

PROGRESS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patient we are. Times in seconds.

    Attributes:
        attempts: tries in all, the first included.
        base, ceiling: the pause before retry n is random between half and all of base * 2**n, at
            most the ceiling.
        longest_wait: a Retry-After beyond it is not waited for.
    """

    attempts: int = 6
    base: float = 0.5
    ceiling: float = 20.0
    longest_wait: float = 120.0


class Backoff:
    """The state of one transfer's retries."""

    def __init__(self, policy: RetryPolicy, rng: random.Random | None = None) -> None:
        self._policy = policy
        self._rng = rng or random.Random()
        self._failures = 0
        self._bytes = 0

    def progressed(self, count: int) -> None:
        """`count` more bytes arrived."""
        self._bytes += count
        if self._bytes >= PROGRESS_BYTES:
            self._bytes = 0
            self._failures = 0

    def failed(self, retry_after: float | None = None) -> float | None:
        """Seconds to wait before the next try; None: give up."""
        self._failures += 1
        if self._failures >= self._policy.attempts:
            return None
        pause: float = min(self._policy.base * 2 ** (self._failures - 1), self._policy.ceiling)
        pause *= self._rng.uniform(0.5, 1.0)
        if retry_after is None:
            return pause
        return None if retry_after > self._policy.longest_wait else max(pause, retry_after)


def parse_retry_after(value: str | None, now: float) -> float | None:
    """RFC 9110 section 10.2.3: seconds or an HTTP date. `now`: seconds since the epoch."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return max(moment.timestamp() - now, 0.0)
    except (ValueError, OverflowError, OSError):
        return None
