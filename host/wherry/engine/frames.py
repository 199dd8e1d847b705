"""Log frames from bytes. Sans-I/O: bytes in, frames out, however the bytes are cut.

A frame is a 16-byte header, big-endian: stream, flags, reserved (0), payload length, time_ns; then
the payload, at most 64 KiB (docs/agent-calls.md). With the flag GAP it is no output: its payload
says how many bytes of the log are gone. The guest is not trusted: anything else is an error.
"""

from __future__ import annotations

import struct

from wherry.engine.model import STDERR, STDOUT, LogFrame
from wherry.errors import LinkError

HEADER = struct.Struct(">BBHIQ")
MAX_PAYLOAD = 64 * 1024
GAP = 1
_SKIPPED = struct.Struct(">Q")


class FrameParser:
    """Feed it pieces of an attach stream.

    `consumed` counts the bytes of the log that all whole frames so far stand for: added to the
    offset where the stream began, it is where another stream goes on.
    """

    def __init__(self) -> None:
        self._rest = b""
        self.consumed = 0

    def feed(self, data: bytes) -> list[LogFrame]:
        """The frames that `data` completes. Raises LinkError when it is not frames."""
        buffer = self._rest + data if self._rest else data
        frames: list[LogFrame] = []
        position = 0
        while len(buffer) - position >= HEADER.size:
            stream, flags, reserved, length, time_ns = HEADER.unpack_from(buffer, position)
            gap = flags == GAP and length == _SKIPPED.size
            known = stream in (STDOUT, STDERR) and (not flags or gap) and not reserved
            if not known or length > MAX_PAYLOAD:
                raise LinkError("the guest sent output that is not log frames")
            end = position + HEADER.size + length
            if end > len(buffer):
                break
            payload = buffer[position + HEADER.size : end]
            if gap:
                self.consumed += _SKIPPED.unpack(payload)[0]
            else:
                self.consumed += end - position
                frames.append(LogFrame(stream, time_ns, payload))
            position = end
        self._rest = buffer[position:]
        return frames

    def finish(self) -> None:
        """The stream has ended. Raises LinkError when that was inside a frame."""
        if self._rest:
            raise LinkError("the guest's output ended in the middle of a frame")
