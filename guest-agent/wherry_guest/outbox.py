"""What one end of the wire has to send: order, turns, and what is kept until it was received.

Sans-I/O. The rule: a sequenced frame is kept, unchanged, until the peer acknowledged it, so that it
can be sent again after a cut; credit bounds what streams can make us keep. Urgent frames go first,
then what must be sent again, then messages in their order, then one chunk of each stream in turn:
so a call is always ahead of the data of the stream that it names. Stdlib only, any OS.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from wherry_guest import frames
from wherry_guest.frames import encode_header

Buffer = bytes | memoryview

Written = tuple[int, list[Buffer]]
"""What was written to a stream in one go: its length, and the pieces, none of them empty."""

JOIN_BELOW: Final = 4096
"""Buffers shorter than this are copied together: a copy is cheaper than one more piece to write."""

PIECE: Final = 32 * 1024
"""What a write of a virtio-serial port takes at most (Linux, drivers/char/virtio_console.c,
port_fops_write); a writev goes on with the next piece when it has taken a whole one."""

FULL_ENOUGH: Final = frames.MAX_PAYLOAD - 8192
"""What was written in one go and has this length is a frame by itself: cutting it and the next ones
anew for each frame would cost more than the frames that are spared."""


class StreamState:
    """One end's view of a stream. Offsets count bytes since the stream was opened."""

    __slots__ = (
        "consumed",
        "dead",
        "ended",
        "granted",
        "id",
        "limit",
        "peer_ended",
        "queue",
        "queued",
        "received",
        "scheduled",
        "sending",
        "sent",
        "starved",
    )

    def __init__(self, id: int, limit: int, granted: int) -> None:
        self.id = id
        self.queue: deque[Written] = deque()
        self.queued = 0
        self.sent = 0
        self.limit = limit
        self.sending = True  # until we end or reset it, or the peer resets it
        self.dead = False  # reset, by either end
        self.ended = False  # our END has gone out
        self.scheduled = False
        self.starved = False  # somebody waits for room
        self.received = 0
        self.consumed = 0
        self.granted = granted
        self.peer_ended = False

    @property
    def room(self) -> int:
        """Bytes of credit that nothing is queued for; negative: so much waits for credit."""
        return self.limit - self.sent - self.queued

    def drop(self) -> None:
        """Forget what was not sent: the stream was reset."""
        self.queue.clear()
        self.queued = 0
        self.sending = False
        self.ended = True
        self.dead = True


_Kept = tuple[int, int, int, int, list[Buffer], int]
"""A frame that is kept: sequence, type, flags, id, payload in pieces, its length."""


class Outbox:
    """The sending half of a connection.

    Attributes:
        flowing: whether sequenced frames may go out (a session is established).
        peer_tag: what the peer wants to see in frames of ours.
        acked, sequence: the last sequence number that the peer has acknowledged; that we used.
        ack: the peer's last sequence number that we have; goes out in every header.
        owe_ack: send `ack` even when there is nothing to say.
        finished: streams whose end has gone out; the owner clears it.
    """

    def __init__(self) -> None:
        self.flowing = False
        self.peer_tag = 0
        self.owe_ack = False
        self._urgent: deque[tuple[int, int, bytes]] = deque()
        self._padding = False
        self.clear()

    def clear(self) -> None:
        """Begin a new session: nothing was sent, nothing is kept."""
        self.acked = 0
        self.sequence = 0
        self.ack = 0
        self._sent = 0
        self._kept: deque[_Kept] = deque()
        self._again: deque[_Kept] = deque()
        self._messages: deque[tuple[int, int, int, Buffer]] = deque()
        self._turns: deque[StreamState] = deque()
        self.finished: list[StreamState] = []

    def lost(self) -> None:
        """The connection is gone: what was urgent on it is not any more."""
        self.flowing = False
        self.owe_ack = False
        self._urgent.clear()
        self._padding = False

    @property
    def settled(self) -> bool:
        """Whether the peer has received everything that its credit lets us send."""
        return not (self._kept or self._messages or self._turns)

    @property
    def kept_bytes(self) -> int:
        return sum(kept[-1] for kept in self._kept)

    def pad(self) -> None:
        """Send, before all else, what completes any frame that the peer may be in the middle of."""
        self._padding = True

    def urgent(self, type: int, payload: bytes = b"", *, tag: int | None = None) -> None:
        """Queue a frame that is not sequenced; `tag` None: the peer's."""
        self._urgent.append((type, self.peer_tag if tag is None else tag, payload))

    def post(self, type: int, id: int, payload: bytes = b"") -> None:
        """Queue a message, in as many frames as it needs."""
        if len(payload) <= frames.MAX_PAYLOAD:
            self._messages.append((type, 0, id, payload))
            return
        view = memoryview(payload)
        for at in range(0, len(view), frames.MAX_PAYLOAD):
            more = frames.MORE if at + frames.MAX_PAYLOAD < len(view) else 0
            self._messages.append((type, more, id, view[at : at + frames.MAX_PAYLOAD]))

    def send(self, stream: StreamState, written: Written) -> None:
        stream.queue.append(written)
        stream.queued += written[0]
        self.schedule(stream)

    def schedule(self, stream: StreamState) -> None:
        """Give the stream a turn, if it has something that may be sent."""
        if not stream.scheduled and _sendable(stream):
            stream.scheduled = True
            self._turns.append(stream)

    def acknowledge(self, ack: int) -> None:
        """The peer has everything up to `ack`, which lies in acked..sequence."""
        self.acked = ack
        kept = self._kept
        while kept and kept[0][0] <= ack:
            kept.popleft()

    def rewind(self, received: int) -> None:
        """The peer has everything up to `received` and nothing after: send the rest again."""
        self.acknowledge(max(received, self.acked))
        self._again = deque(self._kept)
        self._sent = self.acked

    def take(self, limit: int) -> list[Buffer]:
        """The next bytes to write, about `limit` of them; they count as sent.

        Empty: nothing to send, or nothing may be sent.
        """
        out: list[Buffer] = []
        small: list[Buffer] = []
        size = 0
        if self._padding:
            out += (frames.PADDING[:PIECE], frames.PADDING[PIECE:])
            self._padding = False
        while self._urgent:
            small += self._urgent_frame(*self._urgent.popleft())
            size += frames.HEADER_SIZE
        if self.flowing:
            tag, ack = self.peer_tag, self.ack
            while size < limit and (kept := self._next()) is not None:
                sequence, type, flags, id, pieces, length = kept
                header = encode_header(type, flags, id, length, tag, sequence, ack)
                small.append(header)
                size += length + frames.HEADER_SIZE + frames.TRAILER_SIZE
                if length:
                    for piece in pieces:
                        if len(piece) < JOIN_BELOW:
                            small.append(piece)
                        else:
                            _append(out, small, piece)
                    small.append(header[-frames.TRAILER_SIZE :])
                self._sent = sequence
            if self.owe_ack and not size:
                small += self._urgent_frame(frames.ACK, tag, b"")
            self.owe_ack = False
        if small:
            out.append(b"".join(small))
        return out

    def _urgent_frame(self, type: int, tag: int, payload: bytes) -> list[Buffer]:
        header = encode_header(type, 0, 0, len(payload), tag, self._sent, self.ack)
        return [header, payload, header[-frames.TRAILER_SIZE :]] if payload else [header]

    def _next(self) -> _Kept | None:
        """The next sequenced frame, entered into what is kept."""
        while self._again:
            kept = self._again.popleft()
            if kept[0] > self.acked:
                return kept
        if self._messages:
            type, flags, id, payload = self._messages.popleft()
            return self._keep(type, flags, id, [payload], len(payload))
        if self._turns:
            return self._chunk(self._turns.popleft())
        return None

    def _keep(self, type: int, flags: int, id: int, pieces: list[Buffer], length: int) -> _Kept:
        self.sequence += 1
        kept = (self.sequence, type, flags, id, pieces, length)
        self._kept.append(kept)
        return kept

    def _chunk(self, stream: StreamState) -> _Kept | None:
        """One frame of the stream's data; the stream goes to the back of the queue."""
        stream.scheduled = False
        if not _sendable(stream):  # it was reset since
            return self._next()
        queued = stream.queued
        most = min(frames.MAX_PAYLOAD, stream.limit - stream.sent)
        length, pieces = stream.queue[0] if queued else (0, [])
        if length <= most and (length >= FULL_ENOUGH or length == queued):
            if queued:
                del stream.queue[0]
        else:
            length = min(most, queued)
            pieces = _cut(stream.queue, length)
        stream.queued = queued = queued - length
        stream.sent += length
        flags = 0
        if queued:
            self.schedule(stream)
        elif not stream.sending:
            stream.ended = True
            flags = frames.END
            self.finished.append(stream)
        return self._keep(frames.DATA, flags, stream.id, pieces, length)


def _append(out: list[Buffer], small: list[Buffer], piece: Buffer) -> None:
    """What is small first, copied together; then the piece, uncopied, in parts of a write each."""
    if small:
        out.append(b"".join(small))
        small.clear()
    if len(piece) <= PIECE:
        out.append(piece)
        return
    view = memoryview(piece)
    out += (view[:PIECE], view[PIECE:])


def _cut(queue: deque[Written], length: int) -> list[Buffer]:
    """The first `length` bytes of what was written."""
    taken: list[Buffer] = []
    while length:
        written, pieces = queue.popleft()
        if written <= length:
            taken += pieces
            length -= written
            continue
        left: list[Buffer] = []
        queue.appendleft((written - length, left))
        for piece in pieces:
            if len(piece) <= length:
                taken.append(piece)
                length -= len(piece)
                continue
            view = memoryview(piece)
            if length:
                taken.append(view[:length])
            left.append(view[length:])
            length = 0
    return taken


def _sendable(stream: StreamState) -> bool:
    if stream.queued:
        return stream.limit > stream.sent
    return not stream.sending and not stream.ended
