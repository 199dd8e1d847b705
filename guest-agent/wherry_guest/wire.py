"""THE protocol between host and guest, as a state machine: bytes in, events out. docs/wire.md.

Sans-I/O, without a clock, without threads; both ends use this one class. The rule: nothing is ever
silently short. Whatever the transport loses, a session goes on exactly where the receiver stopped,
or it ends, and then every call and stream of it is told so. There is one way back from any damage,
the handshake: the host says HELLO (with a fresh tag, the session and the last sequence number that
it has), the guest answers with its own, and both send again what the other lacks. The guest, which
cannot know when a host comes, asks for a HELLO with HAIL.

How to drive it: `begin()` when the transport is there, `receive()` what comes, write what `take()`
gives, `tick()` every `patience` seconds, `lost()` when the transport is gone.
"""

from __future__ import annotations

import enum
import os
from collections import deque
from typing import Any, Final

from wherry_guest import frames
from wherry_guest.frames import Frame
from wherry_guest.messages import (
    MAX_MESSAGE,
    Broken,
    CallReceived,
    DataReceived,
    ErrorReceived,
    Event,
    EventReceived,
    Incompatible,
    ProtocolError,
    ResultReceived,
    SessionEnded,
    SessionResumed,
    SessionStarted,
    Silent,
    StreamClosed,
    StreamEnded,
    StreamOpened,
    Writable,
    decode_message,
    decode_object,
    encode,
    integer,
)
from wherry_guest.outbox import Buffer, Outbox, StreamState
from wherry_guest.streams import MAX_WINDOW, Streams

__all__ = [
    "MAX_MESSAGE",
    "VERSION",
    "WINDOW",
    "Broken",
    "Buffer",
    "CallReceived",
    "Connection",
    "DataReceived",
    "ErrorReceived",
    "Event",
    "EventReceived",
    "Incompatible",
    "ResultReceived",
    "Role",
    "SessionEnded",
    "SessionResumed",
    "SessionStarted",
    "Silent",
    "State",
    "StreamClosed",
    "StreamEnded",
    "StreamOpened",
    "StreamState",
    "Writable",
]

VERSION: Final = f"{frames.MAJOR}.{frames.MINOR}"
WINDOW: Final = 512 * 1024
"""Bytes of a stream that may be under way, and that its sender may have to keep."""

ACK_FRAMES: Final = 32
ACK_BYTES: Final = 256 * 1024
"""An acknowledgement is sent by itself after so much that nothing went back for."""

EVENTS_IN_FLIGHT: Final = 256
EVENTS_KEPT: Final = 16384
"""Events that the guest keeps for a host; when there are more, the oldest go, and HELLO says so."""

HELLO_PATIENCE: Final = (0.25, 0.5, 1.0, 2.0)
PING_PATIENCE: Final = 5.0
PINGS_UNANSWERED: Final = 3
RESYNCS_IN_VAIN: Final = 3

_HOST_HEARS: Final = frozenset(
    (frames.RESULT, frames.ERROR, frames.EVENT, frames.CREDIT, frames.RESET, frames.DATA)
)
_GUEST_HEARS: Final = frozenset(
    (frames.OPEN, frames.CALL, frames.EVENT_ACK, frames.CREDIT, frames.RESET, frames.DATA)
)


class Role(enum.Enum):
    HOST = enum.auto()
    GUEST = enum.auto()


class State(enum.Enum):
    DOWN = enum.auto()
    """There is no transport."""
    GREETING = enum.auto()
    """The other end's HELLO is awaited."""
    OPEN = enum.auto()


class Connection:
    """One end of the link.

    Args:
        role: the host opens streams and calls, the guest answers and emits events.
        hello: what the peer shall know of us, as JSON; our own keys win.
        epoch: names this end's life in HELLO; a random one when None.
        window: bytes per stream that the peer may send ahead of `consumed`.

    Attributes:
        streams: opens, writes, ends and resets them.
        state, peer: the latter is the other end's last HELLO, None before the first.
        patience: seconds until the next `tick()` is due; None: no need.
        minor: the minor version of the protocol that both ends speak.
    """

    def __init__(
        self,
        role: Role,
        hello: dict[str, Any] | None = None,
        *,
        epoch: str | None = None,
        window: int = WINDOW,
    ) -> None:
        self.role = role
        self.state = State.DOWN
        self.peer: dict[str, Any] | None = None
        self.minor = frames.MINOR
        self.epoch = os.urandom(8).hex() if epoch is None else epoch
        self._hello = dict(hello or {})
        self._window = window
        self._parser = frames.Parser()
        self._outbox = Outbox()
        self._events: list[Event] = []
        self.streams = Streams(role is Role.HOST, self._outbox, window, self._tell)
        self._session: str | None = None
        self._resumed = False
        self._greetings = 0
        self._hailed = False
        self._heard = False
        self._pings = 0
        self._resyncs = 0
        self._next_call = 0
        self._parts: list[bytes] = []
        self._parts_of = (0, 0)
        self._owed_frames = self._owed_bytes = 0
        self._last_event = 0
        self._events_lost = 0
        self._unstored_events = 0
        self._kept_events: dict[int, bytes] = {}
        self._unsent_events: deque[int] = deque()

    # The transport.

    def begin(self) -> None:
        """A transport is there (for the guest: a host may be). Starts the handshake."""
        self._parser.reset()
        self._resyncs = 0
        self._outbox.lost()
        self._outbox.pad()
        self._greet()

    def lost(self) -> None:
        """The transport is gone; the session waits for another one."""
        self.state = State.DOWN
        self._parser.reset()
        self._outbox.lost()

    def receive(self, data: bytes) -> list[Event]:
        """Take in bytes from the transport; returns what they mean."""
        parser = self._parser
        parser.feed(data)
        self._heard = True
        try:
            while (frame := parser.next()) is not None:
                self._on_frame(frame)
            if parser.faults:
                self._resynchronise("the stream of frames was damaged")
        except ProtocolError as error:
            self._break(str(error))
        if self._owed_frames >= ACK_FRAMES or self._owed_bytes >= ACK_BYTES:
            self._outbox.owe_ack = True
        return self.events()

    def take(self, limit: int) -> list[Buffer]:
        """The next bytes to write, about `limit`, in pieces; the caller must write all of them.

        Not to be called before the last ones are written: what is not taken yet can still be
        overtaken by what is urgent.
        """
        outbox = self._outbox
        pieces = outbox.take(limit)
        if pieces and outbox.flowing:
            self._owed_frames = self._owed_bytes = 0
        if outbox.finished:
            self.streams.finish()
        return pieces

    def events(self) -> list[Event]:
        """What has happened and was not told yet (after `take` and the actions below)."""
        events, self._events = self._events, []
        return events

    def tick(self) -> list[Event]:
        """`patience` seconds went by."""
        if self.state is State.GREETING:
            self._greetings += 1
            self._hailed = False
            if self.role is Role.HOST:
                self._say_hello()
            else:
                self._outbox.urgent(frames.HAIL, tag=0)
        elif self.state is State.OPEN and self.role is Role.HOST:
            self._look_for_life()
        return self.events()

    def _look_for_life(self) -> None:
        """Counts ticks, not seconds: after a night's sleep the guest is not taken for dead."""
        if self._heard:
            self._heard = False
            self._pings = 0
            return
        if self._pings == PINGS_UNANSWERED:
            self._events.append(Silent())
        self._pings += 1
        self.ping()

    @property
    def patience(self) -> float | None:
        if self.state is State.GREETING:
            return HELLO_PATIENCE[min(self._greetings, len(HELLO_PATIENCE) - 1)]
        if self.state is State.OPEN and self.role is Role.HOST:
            return PING_PATIENCE
        return None

    @property
    def established(self) -> bool:
        return self.state is State.OPEN

    @property
    def settled(self) -> bool:
        """Whether the peer has received everything that it lets us send."""
        return self._outbox.settled

    # Actions. They queue; `take` gives the bytes.

    def ping(self) -> None:
        """Ask for a sign of life; the answer acknowledges what was sent before."""
        self._outbox.urgent(frames.PING)

    def call(self, method: str, params: dict[str, Any]) -> int:
        """Host: call the guest. Returns the id that its result will carry."""
        payload = encode({"method": method, "params": params})
        self._next_call += 1
        self._outbox.post(frames.CALL, self._next_call, payload)
        return self._next_call

    def reply(self, id: int, result: dict[str, Any] | None) -> None:
        """Guest: answer a call of this session.

        Raises:
            TypeError, ValueError: the result is not JSON, or too long.
        """
        self._outbox.post(frames.RESULT, id, encode(result))

    def fail(self, id: int, code: str, message: str, data: dict[str, Any] | None = None) -> None:
        """Guest: answer a call of this session with an error."""
        payload = encode({"code": code, "message": message, "data": data})
        self._outbox.post(frames.ERROR, id, payload)

    def emit(self, name: str, payload: dict[str, Any], time_ns: int) -> int:
        """Guest: queue an event. It is kept, across sessions, until the host acknowledged it."""
        encoded = encode({"name": name, "time_ns": time_ns, "payload": payload})
        self._last_event += 1
        self._kept_events[self._last_event] = encoded
        self._unsent_events.append(self._last_event)
        if len(self._kept_events) > EVENTS_KEPT and self._unsent_events:
            del self._kept_events[self._unsent_events.popleft()]
            self._events_lost += 1
        self._post_events()
        return self._last_event

    @property
    def last_unstored_event(self) -> int:
        """Guest: the newest event that the host has not acknowledged; 0 when there is none."""
        return max(self._kept_events, default=0)

    def ack_event(self, id: int) -> None:
        """Host: the event, of this session, is stored."""
        self._unstored_events -= 1
        self._outbox.post(frames.EVENT_ACK, id)

    def _tell(self, event: Event) -> None:
        self._events.append(event)

    # The handshake.

    def _greet(self, at_once: bool = True) -> None:
        """Ask for a fresh start of the conversation; whatever else comes is ignored until then."""
        self.state = State.GREETING
        self._greetings = 0
        self._hailed = False
        self._parser.faults = 0
        self._outbox.flowing = False
        if self.role is Role.HOST:
            self._parser.tag = _fresh_tag()
            self._say_hello()
        elif at_once:
            self._outbox.urgent(frames.HAIL, tag=0)

    def _say_hello(self) -> None:
        hello = self._hello | {
            "wire": VERSION,
            "epoch": self.epoch,
            "tag": self._parser.tag,
            "session": self._session,
            "received": self._outbox.ack,
            "window": self._window,
        }
        if self.role is Role.GUEST:
            hello |= {"resume": self._resumed, "events_lost": self._events_lost}
        tag = 0 if self.role is Role.HOST else self._outbox.peer_tag
        self._outbox.urgent(frames.HELLO, encode(hello, frames.LIMITS[frames.HELLO]), tag=tag)

    def _on_hello(self, hello: dict[str, Any]) -> None:
        tag = integer(hello, "tag", 0, 2**32 - 1)
        wire = hello.get("wire")
        major, _, minor = wire.partition(".") if isinstance(wire, str) else ("", "", "")
        if major != str(frames.MAJOR):
            self._incompatible(hello, tag)
            return
        if not minor.isdecimal():
            raise ProtocolError("HELLO has no version")
        self.minor = min(frames.MINOR, int(minor[:6]))
        self.streams.peer_window = integer(hello, "window", 1, MAX_WINDOW)
        if self.role is Role.GUEST:
            self._answer_hello(hello, tag)
        elif self.state is not State.OPEN or tag != self._outbox.peer_tag:
            self._finish_hello(hello, tag)

    def _incompatible(self, hello: dict[str, Any], tag: int) -> None:
        self.peer = hello
        self.state = State.GREETING
        self._outbox.flowing = False
        self._outbox.peer_tag = tag
        if self.role is Role.GUEST:
            self._say_hello()  # so that the host can say which version we are
        self._events.append(Incompatible(hello))

    def _answer_hello(self, hello: dict[str, Any], tag: int) -> None:
        """Guest: a host speaks. Its HELLO may come twice; then so does the answer."""
        received = integer(hello, "received", 0, 2**64 - 1)
        repeated = self.state is State.OPEN and tag == self._outbox.peer_tag
        if not repeated:
            ours = self._session is not None and hello.get("session") == self._session
            self._resumed = ours and self._outbox.acked <= received <= self._outbox.sequence
            self._parser.tag = _fresh_tag()
            if not self._resumed:
                self._end_session("another session began")
                self._session = os.urandom(8).hex()
        self._outbox.peer_tag = tag
        self._say_hello()
        self._established(hello, self._resumed, received if self._resumed else 0, repeated)

    def _finish_hello(self, hello: dict[str, Any], tag: int) -> None:
        """Host: the guest has answered."""
        received = integer(hello, "received", 0, 2**64 - 1)
        session = hello.get("session")
        if not isinstance(session, str):
            raise ProtocolError("HELLO has no session")
        resumed = hello.get("resume") is True and session == self._session
        if resumed and not self._outbox.acked <= received <= self._outbox.sequence:
            raise ProtocolError("the guest resumes at a place where it was not")
        if not resumed:
            if self._session is not None:
                restarted = self.peer is not None and self.peer.get("epoch") != hello.get("epoch")
                self._end_session("the agent was restarted" if restarted else "the agent forgot us")
            self._session = session
        self._outbox.peer_tag = tag
        self._established(hello, resumed, received if resumed else 0, False)

    def _established(
        self, hello: dict[str, Any], resumed: bool, received: int, repeated: bool
    ) -> None:
        self.state = State.OPEN
        self.peer = hello
        self._pings = 0
        self._parser.faults = 0
        self._outbox.flowing = True
        self._outbox.rewind(received)
        if repeated:
            return
        if resumed:
            self._events.append(SessionResumed(hello))
            return
        self.streams.start_session()
        self._unsent_events = deque(self._kept_events)
        self._post_events()
        self._events.append(SessionStarted(hello))

    def _end_session(self, reason: str) -> None:
        if self._session is None:
            return
        self._session = None
        self.streams.end_session()
        self._outbox.clear()
        self._outbox.flowing = False
        self._parts.clear()
        self._owed_frames = self._owed_bytes = 0
        self._unsent_events.clear()
        self._unstored_events = 0
        self._events.append(SessionEnded(reason))

    def _resynchronise(self, reason: str) -> None:
        """Something is missing: have it sent again. In vain too often on one transport, the host
        ends the session, lest two ends at odds repeat themselves for ever."""
        self._parser.faults = 0
        if self.state is not State.OPEN:
            return
        self._resyncs += 1
        if self.role is Role.HOST and self._resyncs > RESYNCS_IN_VAIN:
            self._break(reason)
        else:
            self._greet()

    def _break(self, reason: str) -> None:
        self._resyncs = 0
        self._end_session(reason)
        self._events.append(Broken(reason))
        self._greet(at_once=False)  # a guest waits, lest two ends at odds never rest

    # Frames.

    def _on_frame(self, frame: Frame) -> None:
        type = frame.type
        if type <= frames.HAIL:
            self._on_greeting(frame)
            return
        if self.state is not State.OPEN:
            return
        outbox = self._outbox
        if frame.ack > outbox.acked:
            if frame.ack > outbox.sequence:
                raise ProtocolError("frames were acknowledged that were never sent")
            outbox.acknowledge(frame.ack)
            self._resyncs = 0
        if type < frames.FIRST_SEQUENCED:
            if frame.sequence > outbox.ack:
                self._resynchronise("frames are missing")
            elif type == frames.PING:
                outbox.urgent(frames.PONG)
            return
        if frame.sequence != outbox.ack + 1:
            if frame.sequence > outbox.ack:
                self._resynchronise("frames are missing")
            return  # else it was sent again needlessly
        outbox.ack = frame.sequence
        self._resyncs = 0
        self._owed_frames += 1
        self._owed_bytes += len(frame.payload)
        if type == frames.DATA:
            self.streams.on_data(frame)
        else:
            self._on_message(frame)

    def _on_greeting(self, frame: Frame) -> None:
        if frame.type == frames.HELLO:
            if (frame.tag == 0) is (self.role is Role.GUEST):
                self._on_hello(decode_object(frame.payload))
        elif self.role is Role.HOST:
            if self.state is State.OPEN:
                self._resynchronise("the agent lost its way again and again")
            elif not self._hailed:  # once per tick: a damaged payload may hold any number of them
                self._hailed = True
                self._say_hello()

    def _on_message(self, frame: Frame) -> None:
        type = frame.type
        if type not in (_HOST_HEARS if self.role is Role.HOST else _GUEST_HEARS):
            raise ProtocolError(f"a frame of type {type} from the wrong end")
        if type == frames.CREDIT:
            self.streams.on_credit(frame)
        elif type == frames.OPEN:
            self.streams.on_open(frame.id)
        elif type == frames.RESET:
            self.streams.on_reset(frame)
        elif type == frames.EVENT_ACK:
            self._kept_events.pop(frame.id, None)
            self._post_events()
        else:
            payload = self._assemble(frame)
            if payload is not None:
                if type == frames.EVENT:
                    self._unstored_events += 1
                    if self._unstored_events > EVENTS_IN_FLIGHT:
                        raise ProtocolError("too many events at once")
                self._events.append(decode_message(type, frame.id, payload))

    def _assemble(self, frame: Frame) -> bytes | None:
        """The whole message, when this frame completes it."""
        if self._parts:
            if self._parts_of != (frame.type, frame.id):
                raise ProtocolError("a message within a message")
        elif not frame.flags & frames.MORE:
            return frame.payload
        self._parts_of = (frame.type, frame.id)
        self._parts.append(frame.payload)
        if len(self._parts) * frames.MAX_PAYLOAD > MAX_MESSAGE + frames.MAX_PAYLOAD:
            raise ProtocolError("a message is too long")
        if frame.flags & frames.MORE:
            return None
        parts, self._parts = self._parts, []
        return b"".join(parts)

    def _post_events(self) -> None:
        """Send what the limit of unacknowledged events allows."""
        if self._session is None:
            return
        unsent = self._unsent_events
        while unsent and len(self._kept_events) - len(unsent) < EVENTS_IN_FLIGHT:
            id = unsent.popleft()
            self._outbox.post(frames.EVENT, id, self._kept_events[id])


def _fresh_tag() -> int:
    """A secret that nothing sent before can contain; 0 means none."""
    return int.from_bytes(os.urandom(4), "big") or 1
