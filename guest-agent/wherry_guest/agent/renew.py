"""What makes a machine itself and no twin: what the host gives it before anything else runs.

Two machines that were restored from one template have the same memory, so the same random numbers
ahead of them. Rule: nothing here draws one; what must differ comes from the host.
"""

from __future__ import annotations

import os
import re
import struct
import time
from pathlib import Path
from typing import Any, Final

from wherry_guest.agent.kernel import ioctl, write_file
from wherry_guest.channel import CallError

_os: Final[Any] = os
_time: Final[Any] = time

_RNDADDENTROPY: Final = 0x40085203
_RNDRESEEDCRNG: Final = 0x5207
"""uapi/linux/random.h: _IOW('R', 0x03, int[2]) and _IO('R', 0x07)."""

MACHINE_ID: Final = Path("/etc/machine-id")
_MACHINE_ID: Final = re.compile(r"[0-9a-f]{32}")
"""machine-id(5)."""
_MAC: Final = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
"""A station's own address, no group's: IEEE 802, the first byte's lowest bit is 0."""


def set_clock(time_ns: int) -> None:
    _time.clock_settime_ns(_time.CLOCK_REALTIME, time_ns)


def add_entropy(entropy: bytes) -> None:
    """Mix the host's random bytes in and draw from them at once."""
    fd = os.open("/dev/urandom", os.O_WRONLY | _os.O_CLOEXEC)
    try:
        # struct rand_pool_info: entropy_count in bits, buf_size in bytes, buf
        ioctl(fd, _RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
        ioctl(fd, _RNDRESEEDCRNG, b"")
    finally:
        os.close(fd)


def checked_machine_id(text: str) -> str:
    """The machine's id; "" for none.

    Raises:
        CallError: `invalid`.
    """
    if text and not _MACHINE_ID.fullmatch(text):
        raise CallError("invalid", "machine_id must be 32 hex digits")
    return text


def checked_mac(text: str) -> str:
    """A network device's address; "" for the one that it has.

    Raises:
        CallError: `invalid`.
    """
    if text and not _MAC.fullmatch(text):
        raise CallError("invalid", "network.mac must be an address such as 52:54:00:12:34:56")
    return text


def write_machine_id(machine_id: str, file: Path = MACHINE_ID) -> None:
    write_file(os.fspath(file), f"{machine_id}\n", 0o444)
