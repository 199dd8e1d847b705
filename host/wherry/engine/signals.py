"""Linux's signal numbers. The host's own table (`signal`) is another one on macOS and Windows.

Source: signal(7), the x86/ARM column, which amd64 and arm64 share.
"""

from __future__ import annotations

from wherry.errors import InvalidInput

SIGHUP, SIGINT, SIGKILL, SIGTERM = 1, 2, 9, 15

_NAMES = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT "
    "STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"
)
"""In the order of their numbers, from 1."""

_NUMBERS = {name: number for number, name in enumerate(_NAMES.split(), start=1)}
_NUMBERS |= {"IOT": 6, "CLD": 17, "POLL": 29}

_RTMIN, _RTMAX = 34, 64
"""As glibc numbers the real-time signals (32 and 33 are its own)."""


def signal_number(text: str | int | None, default: int = SIGTERM) -> int:
    """`TERM`, `SIGTERM`, `rtmin+1`, `15` or 15 to a number; nothing at all to `default`.

    Raises:
        InvalidInput: there is no such signal.
    """
    if text is None or text == "":
        return default
    if isinstance(text, int) or text.isdecimal():
        number = int(text)
        if 0 < number <= _RTMAX:
            return number
        raise InvalidInput(f"Invalid signal: {text}")
    name = text.upper().removeprefix("SIG")
    number = _NUMBERS.get(name, 0) or _real_time(name)
    if not number:
        raise InvalidInput(f"Invalid signal: {text}")
    return number


def _real_time(name: str) -> int:
    for base, start, sign in (("RTMIN", _RTMIN, 1), ("RTMAX", _RTMAX, -1)):
        if name == base:
            return start
        offset = name.removeprefix(base + ("+" if sign > 0 else "-"))
        if offset != name and offset.isdecimal() and int(offset) <= _RTMAX - _RTMIN:
            return start + sign * int(offset)
    return 0
