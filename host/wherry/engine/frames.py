"""Log frames from bytes. Sans-I/O: bytes in, frames out, however the bytes are cut.

A frame is a 16-byte header, big-endian: stream, flags (0), reserved (0), payload length, time_ns;
then the payload, at most 64 KiB (docs/agent-calls.md). The guest is not trusted: anything else is
an error.
"""

from __future__ import annotations

import struct

from wherry.engine.model import STDERR, STDOUT, LogFrame
from wherry.errors import LinkError

HEADER = struct.Struct(">BBHIQ")
MAX_PAYLOAD = 64 * 1024


class FrameParser:
    """Feed it pieces of an attach stream.

    `consumed` counts the bytes of all whole frames so far: added to the offset where the stream
    began, it is where another stream goes on.
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
            if stream not in (STDOUT, STDERR) or flags or reserved or length > MAX_PAYLOAD:
                raise LinkError("the guest sent output that is not log frames")
            end = position + HEADER.size + length
            if end > len(buffer):
                break
            frames.append(LogFrame(stream, time_ns, buffer[position + HEADER.size : end]))
            position = end
        self._rest = buffer[position:]
        self.consumed += position
        return frames

    def finish(self) -> None:
        """The stream has ended. Raises LinkError when that was inside a frame."""
        if self._rest:
            raise LinkError("the guest's output ended in the middle of a frame")
