"""Durations and sizes as Docker's tables say them, and as its flags take them. Pure."""

from __future__ import annotations

import re

from wherry.errors import InvalidInput

_BINARY = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_NANOSECONDS = {
    "ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9,
}  # fmt: skip
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE)


def human_duration(seconds: float) -> str:
    """As Docker's tables say it: "5 seconds", "About a minute", "3 weeks"."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = round(whole / 3600)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    days = hours // 24
    for unit, length, limit in (("days", 1, 14), ("weeks", 7, 60), ("months", 30, 730)):
        if days < limit:
            return f"{days // length} {unit}"
    return f"{days // 365} years"


def human_size(count: float) -> str:
    """Decimal units with three digits, as Docker's SIZE column: 4.06MB, 117MB, 0B."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{_three_digits(count)}{unit}"
        count /= 1000
    return f"{_three_digits(count)}TB"


def binary_size(count: float) -> str:
    """Binary units with up to four digits, as Docker's stats: 284KiB, 967.7MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g}{unit}"
        count /= 1024
    return f"{count:.4g}TiB"


def parse_size(text: str) -> int:
    """Bytes of a size as Docker's flags take it: a number and b, k, m, g or t (powers of 1024).

    Raises:
        InvalidInput: not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(
            f"{text!r} is not a size", hint="use a number and a unit, as in 512m or 2g"
        )
    return int(float(match[1]) * _BINARY[match[2].lower()])


def parse_duration(text: str) -> int:
    """Nanoseconds of a duration as Go writes it: `1h30m`, `500ms`, `0`.

    Raises:
        InvalidInput: not a duration.
    """
    parts = _DURATION_PART.findall(text)
    if text != "0" and (not parts or "".join(number + unit for number, unit in parts) != text):
        raise InvalidInput(f"{text!r} is not a duration", hint="as in 30s or 1h30m")
    return int(sum(float(number) * _NANOSECONDS[unit] for number, unit in parts))


def _three_digits(value: float) -> str:
    """As C's %.3g, but never in exponent form."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
