"""The streams of one end of the wire: opening, credit, half-close and reset.

Sans-I/O. The rule: each direction carries exactly the bytes between its opening and its END, or the
stream is reset; a peer that sends more than it was given credit for breaks the protocol. Stdlib
only, any OS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from wherry_guest import frames
from wherry_guest.frames import Frame
from wherry_guest.messages import (
    DataReceived,
    Event,
    ProtocolError,
    StreamClosed,
    StreamEnded,
    StreamOpened,
    Writable,
)
from wherry_guest.outbox import Buffer, Outbox, StreamState

MAX_WINDOW: Final = 16 * 1024 * 1024
"""Bytes of credit that a peer may give at most: what its silence can make us keep."""


class Streams:
    """The table of open streams. `open`, `send`, `end`, `reset` and `consumed` are for the owner;
    the rest is the connection's.

    Args:
        allocates: whether this end opens the streams (the host).
        window: bytes per stream that the peer may send ahead of `consumed`.
        tell: takes what happens to streams.

    Attributes:
        peer_window: what the peer's HELLO said of its `window`.
    """

    def __init__(
        self, allocates: bool, outbox: Outbox, window: int, tell: Callable[[Event], None]
    ) -> None:
        self.peer_window = 0
        self._allocates = allocates
        self._outbox = outbox
        self._window = window
        self._tell = tell
        self._open: dict[int, StreamState] = {}
        self._last = 0

    def open(self) -> StreamState:
        """Host: a new stream, usable at once; its id goes into a call's parameters."""
        self._last += 1
        stream = StreamState(self._last, self.peer_window, self._window)
        self._open[stream.id] = stream
        self._outbox.post(frames.OPEN, stream.id)
        return stream

    def send(self, stream: StreamState, *written: Buffer) -> bool:
        """Queue data, in one piece or in several; False: no credit is left, stop until `Writable`.

        On a stream that was reset the data is dropped (True).

        Raises:
            ValueError: the stream was ended.
        """
        if stream.dead:
            return True
        if not stream.sending:
            raise ValueError(f"stream {stream.id} was ended")
        pieces = [piece for piece in written if piece]
        if pieces:
            self._outbox.send(stream, (sum(map(len, pieces)), pieces))
        stream.starved = stream.room <= 0
        return not stream.starved

    def end(self, stream: StreamState) -> None:
        """Half-close after what is queued."""
        if stream.sending:
            stream.sending = False
            self._outbox.schedule(stream)

    def reset(self, stream: StreamState, reason: str) -> None:
        """Kill both halves; the peer gets the reason. Nothing if the stream is closed."""
        if self._open.pop(stream.id, None) is not None:
            stream.drop()
            self._outbox.post(
                frames.RESET,
                stream.id,
                reason.encode("utf-8", "replace")[: frames.LIMITS[frames.RESET]],
            )

    def consumed(self, stream: StreamState, count: int) -> None:
        """`count` bytes of the stream have gone where they should: grants credit for as many."""
        stream.consumed += count
        limit = stream.consumed + self._window
        if (
            2 * (limit - stream.granted) >= self._window
            and not stream.peer_ended
            and not stream.dead
        ):
            stream.granted = limit
            self._outbox.post(frames.CREDIT, stream.id, limit.to_bytes(8, "big"))

    def start_session(self) -> None:
        """A new session begins; streams that were opened before now get their credit."""
        for stream in self._open.values():
            stream.limit = self.peer_window
            self._outbox.schedule(stream)

    def end_session(self) -> None:
        """All streams are over. Ids go on where we allocate them, and begin anew elsewhere."""
        for stream in self._open.values():
            stream.drop()
        self._open.clear()
        if not self._allocates:
            self._last = 0

    def finish(self) -> None:
        """The END of some streams has gone out."""
        for stream in self._outbox.finished:
            self._close_if_complete(stream)
        self._outbox.finished.clear()

    def on_data(self, frame: Frame) -> None:
        stream = self._stream(frame)
        if stream is None:
            return
        size = len(frame.payload)
        if stream.peer_ended or stream.received + size > stream.granted:
            raise ProtocolError(f"stream {frame.id}: data beyond its credit or its end")
        stream.received += size
        if size:
            self._tell(DataReceived(frame.id, frame.payload))
        if frame.flags & frames.END:
            stream.peer_ended = True
            self._tell(StreamEnded(frame.id))
            self._close_if_complete(stream)

    def on_credit(self, frame: Frame) -> None:
        stream = self._stream(frame)
        if stream is None:
            return
        limit = int.from_bytes(frame.payload, "big")
        if not stream.limit <= limit <= stream.sent + MAX_WINDOW:
            raise ProtocolError(f"stream {frame.id}: impossible credit")
        stream.limit = limit
        self._outbox.schedule(stream)
        if stream.starved and stream.room > 0:
            stream.starved = False
            self._tell(Writable(frame.id))

    def on_open(self, id: int) -> None:
        if id <= self._last:
            raise ProtocolError(f"stream {id} was opened twice")
        self._last = id
        stream = self._open[id] = StreamState(id, self.peer_window, self._window)
        self._tell(StreamOpened(stream))

    def on_reset(self, frame: Frame) -> None:
        stream = self._stream(frame)
        if stream is not None:
            del self._open[frame.id]
            stream.drop()
            self._tell(StreamClosed(frame.id, frame.payload.decode(errors="replace")))

    def _stream(self, frame: Frame) -> StreamState | None:
        """The frame's stream, None when it was closed meanwhile."""
        stream = self._open.get(frame.id)
        if stream is None and not 0 < frame.id <= self._last:
            raise ProtocolError(f"stream {frame.id} was never opened")
        return stream

    def _close_if_complete(self, stream: StreamState) -> None:
        if stream.ended and stream.peer_ended and self._open.pop(stream.id, None) is not None:
            self._tell(StreamClosed(stream.id, None))
