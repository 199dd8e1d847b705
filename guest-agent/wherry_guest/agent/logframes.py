"""Log frames: what a container's log consists of, and what readers are sent. Sans-I/O.

docs/agent-calls.md describes them; the host's end is `wherry.engine.frames`. Stdlib only, any OS.
"""

from __future__ import annotations

import struct
import time
from typing import Final

from wherry_guest import frames

STDOUT: Final = 1
STDERR: Final = 2

HEADER: Final = struct.Struct(">BBHIQ")
"""docs/agent-calls.md: stream, flags, reserved (0), payload length, time_ns."""

GAP: Final = 1
"""Flag of a frame that is in no log: its payload says how many bytes of the log are skipped."""

_GAP_PAYLOAD: Final = struct.Struct(">Q")

MAX_PAYLOAD: Final = 64 * 1024

FULL_PAYLOAD: Final = 60 * 1024
"""What is put into one frame of a log: whole pages, and with its header it fits one frame of the
wire."""

PASSING_PAYLOAD: Final = frames.MAX_PAYLOAD - HEADER.size
"""What is put into a frame that is in no log: with its header it fills one frame of the wire."""


def frame_header(stream: int, length: int, time_ns: int) -> bytes:
    """The 16 bytes before a payload."""
    return HEADER.pack(stream, 0, 0, length, time_ns)


def gap_frame(skipped: int) -> bytes:
    """What a reader gets in place of `skipped` bytes that are gone."""
    header = HEADER.pack(STDOUT, GAP, 0, _GAP_PAYLOAD.size, time.time_ns())
    return header + _GAP_PAYLOAD.pack(skipped)


def payload_length(header: bytes) -> int | None:
    """The length that a header states; None when these 16 bytes are no header."""
    stream, flags, reserved, length, _ = HEADER.unpack(header)
    if stream not in (STDOUT, STDERR) or flags or reserved or not 0 < length <= MAX_PAYLOAD:
        return None
    return int(length)
