"""Frames on the wire: the fixed header, and a parser that finds its way back after damage.

Sans-I/O and without state of the protocol: bytes in, frames out. The rule: no byte of a payload is
given on before the frame's end was found where its header said, and nothing is allocated for a
length that the frame's type does not allow. docs/wire.md describes the format. Stdlib only, any OS.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple
from zlib import crc32

MAGIC: Final = b"\xf5WRY"
"""0xF5 occurs in no UTF-8 text."""

MAJOR: Final = 1
MINOR: Final = 0

FRAME_SIZE: Final = 65536
"""The longest frame. What is longer is cut, so that a message never keeps a stream waiting."""

_HEADER: Final = struct.Struct(">4sBBHIIIQQ")
_CRC: Final = struct.Struct(">I")
HEADER_SIZE: Final = _HEADER.size + _CRC.size
TRAILER_SIZE: Final = _CRC.size
MAX_PAYLOAD: Final = FRAME_SIZE - HEADER_SIZE - TRAILER_SIZE

PADDING: Final = bytes(FRAME_SIZE)
"""Sent where the receiver may be waiting for the rest of a frame that was cut: it completes any."""

# Not sequenced: never sent again; their `sequence` is the last one that went out before them.
HELLO: Final = 1
HAIL: Final = 2
ACK: Final = 3
PING: Final = 4
PONG: Final = 5
# Sequenced: kept by the sender until acknowledged.
OPEN: Final = 16
CALL: Final = 17
RESULT: Final = 18
ERROR: Final = 19
EVENT: Final = 20
EVENT_ACK: Final = 21
CREDIT: Final = 22
RESET: Final = 23
DATA: Final = 24
FIRST_SEQUENCED: Final = OPEN

MORE: Final = 1
"""Flag: the message goes on in the next frame of the same type and id."""

END: Final = 2
"""Flag of DATA: the sender's half of the stream ends with this frame."""

LIMITS: Final[dict[int, int]] = {
    HELLO: 16384,
    HAIL: 0,
    ACK: 0,
    PING: 0,
    PONG: 0,
    OPEN: 0,
    CALL: MAX_PAYLOAD,
    RESULT: MAX_PAYLOAD,
    ERROR: MAX_PAYLOAD,
    EVENT: MAX_PAYLOAD,
    EVENT_ACK: 0,
    CREDIT: 8,
    RESET: 4096,
    DATA: MAX_PAYLOAD,
}
"""The longest payload of each type, in bytes."""


class Frame(NamedTuple):
    type: int
    flags: int
    id: int
    tag: int
    sequence: int
    ack: int
    payload: bytes


def encode_header(
    type: int, flags: int, id: int, length: int, tag: int, sequence: int, ack: int
) -> bytes:
    """A header of HEADER_SIZE bytes. Its last four are its checksum and the frame's trailer."""
    head = _HEADER.pack(MAGIC, MAJOR, type, flags, id, length, tag, sequence, ack)
    return head + _CRC.pack(crc32(head))


class Parser:
    """Cuts a byte stream into frames.

    Frames of another `tag` than ours are skipped: they were meant for an earlier state of this
    connection. After damage the parser searches, byte by byte, for the next header whose checksum,
    tag and trailer are right; the tag is a secret of both ends, so a payload cannot pose as a
    frame. HELLO and HAIL come with tag 0, from a peer that does not know ours.

    Attributes:
        tag: what frames must carry.
        faults: how often the parser lost its way; the owner resets it.
        garbage: bytes that belonged to no frame, in total.
    """

    def __init__(self) -> None:
        self.tag = 0
        self.faults = 0
        self.garbage = 0
        self._hunting = True
        self._data = b""
        self._at = 0
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = HEADER_SIZE

    def reset(self) -> None:
        """Forget what was received: another connection begins."""
        self._hunting = True
        self._data = b""
        self._at = 0
        self._chunks.clear()
        self._have = 0
        self._need = HEADER_SIZE

    def feed(self, data: bytes) -> None:
        self._chunks.append(data)
        self._have += len(data)

    def next(self) -> Frame | None:
        """The next frame, or None: feed more."""
        while self._have >= self._need:
            if self._chunks:
                self._gather()
            if self._hunting and not self._hunt():
                return None
            found = self._frame_at(self._data, self._at)
            if isinstance(found, int):
                if found > self._have:
                    self._need = found
                    return None
                self._skip(found)  # of another tag
                self._hunting = False
            elif found is None:
                if not self._hunting:
                    self._hunting = True
                    self.faults += 1
                self.garbage += 1
                self._skip(1)
            else:
                self._hunting = False
                length = len(found.payload)
                self._skip(HEADER_SIZE + length + TRAILER_SIZE if length else HEADER_SIZE)
                return found
        return None

    def _gather(self) -> None:
        rest = self._data[self._at :]
        if rest or len(self._chunks) > 1:
            self._data = b"".join((rest, *self._chunks))
        else:
            self._data = self._chunks[0]
        self._at = 0
        self._chunks.clear()

    def _skip(self, count: int) -> None:
        self._at += count
        self._have -= count
        self._need = HEADER_SIZE

    def _hunt(self) -> bool:
        """Go on to the next place where a header may begin; False: there is none yet."""
        found = self._data.find(MAGIC, self._at)
        if found < 0:
            found = max(self._at, len(self._data) - len(MAGIC) + 1)
        self.garbage += found - self._at
        self._skip(found - self._at)
        return self._have >= HEADER_SIZE

    def _frame_at(self, data: bytes, at: int) -> Frame | int | None:
        """What stands at `at`: a frame; the bytes of a frame that is incomplete or not for us; or
        None, nothing that we can read."""
        body = at + _HEADER.size
        head = data[at:body]
        magic, version, type, flags, id, length, tag, sequence, ack = _HEADER.unpack(head)
        checksum = data[body : body + TRAILER_SIZE]
        if magic != MAGIC or _CRC.pack(crc32(head)) != checksum:
            return None
        if length > LIMITS.get(type, -1) or (version != MAJOR and type != HELLO):
            return None
        ours = tag == self.tag or (tag == 0 and type <= HAIL)
        if not ours and self._hunting:
            return None
        size = HEADER_SIZE + length + TRAILER_SIZE if length else HEADER_SIZE
        if self._have < size:
            return size
        start = at + HEADER_SIZE
        if length and data[start + length : start + length + TRAILER_SIZE] != checksum:
            return None
        if not ours:
            return size
        return Frame(type, flags, id, tag, sequence, ack, data[start : start + length])
