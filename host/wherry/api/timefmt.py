"""Times and durations as Docker writes and reads them. Pure."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

from wherry.errors import InvalidInput
from wherry.units import parse_duration

ZERO_TIME = "0001-01-01T00:00:00Z"
"""Go's zero time: what Docker shows for "never"."""

_NS = 1_000_000_000


def rfc3339(time_ns: int | None, *, fixed: bool = False) -> str:
    """RFC 3339 in UTC with nanoseconds, trailing zeros cut unless `fixed`; nothing: `ZERO_TIME`."""
    if not time_ns:
        return ZERO_TIME
    seconds, nanoseconds = divmod(time_ns, _NS)
    moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanoseconds:09d}"
    return f"{moment}{fraction if fixed else fraction.rstrip('0').rstrip('.')}Z"


def parse_time(text: str) -> int | None:
    """Unix seconds with an optional fraction, or RFC 3339, as nanoseconds; None for "" and 0.

    Raises:
        InvalidInput: neither form.
    """
    if not text or text == "0":
        return None
    try:
        return int(Decimal(text) * _NS)
    except InvalidOperation:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f"{text!r} is not a time", hint="use Unix seconds or RFC 3339") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1_000_000) * 1000


def parse_moment(text: str) -> int:
    """As `parse_time`, or a duration (`24h`) before now; nanoseconds since the epoch.

    Raises:
        InvalidInput: none of these.
    """
    try:
        return time.time_ns() - parse_duration(text)
    except InvalidInput:
        return parse_time(text) or 0
