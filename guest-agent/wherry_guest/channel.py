"""The guest's end of the link: calls in; results, events and streams out; over one port.

The rule: the protocol is `wire.Connection`'s, the bytes are `lines.Lines`'; this module hands what
the host asks to handlers, and what they answer back. Nothing here blocks. Stdlib only, any OS.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from wherry_guest import wire
from wherry_guest.lines import Lines
from wherry_guest.loop import Loop, Timer
from wherry_guest.port import Ends, open_agent_port

__all__ = [
    "DEFERRED",
    "Call",
    "CallError",
    "Channel",
    "Deferred",
    "Ends",
    "GuestStream",
    "Handler",
    "open_agent_port",
]

STREAM_QUEUE_LIMIT: Final = 256 * 1024
"""Bytes that a stream may hold beyond its credit before `GuestStream.write` refuses."""


class CallError(Exception):
    """A handler's answer that is an error. `code` is one of those in docs/agent-calls.md."""

    def __init__(self, code: str, message: str, data: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class Deferred(enum.Enum):
    """The type of `DEFERRED`."""

    TOKEN = enum.auto()


DEFERRED: Final = Deferred.TOKEN
"""What a handler returns that answers later, by `call.reply` or `call.fail`."""


class Call:
    """One call from the host. Answer it once; after its session's end an answer goes nowhere."""

    __slots__ = ("_channel", "id", "method")

    def __init__(self, channel: Channel, id: int, method: str) -> None:
        self._channel: Channel | None = channel
        self.id = id
        self.method = method

    @property
    def pending(self) -> bool:
        """False once it was answered, or the host that asked is gone for good."""
        return self._channel is not None

    def reply(self, result: dict[str, Any] | None = None) -> None:
        """Answer with `result`, a dict that JSON can express.

        Raises:
            TypeError, ValueError: it cannot; the call is then still pending.
        """
        if self._channel is not None:
            self._channel._answer(self.id, result)
            self._channel = None

    def fail(self, code: str, message: str, data: dict[str, Any] | None = None) -> None:
        """Answer with an error; `data` as in `reply`."""
        if self._channel is not None:
            self._channel._refuse(self.id, code, message, data)
            self._channel = None

    def _orphan(self) -> None:
        self._channel = None


Handler = Callable[[dict[str, Any], Call], object]


class GuestStream:
    """One byte stream, both directions. Get it by `channel.stream(id)` in the call that names it.

    Receiving: chunks go to the `on_data` callback as they come; until there is one, and while
    paused, they are held and the host gets no more credit for them. `on_end` follows the last
    chunk. Sending: `write` takes everything, and says False when it is time to stop until
    `on_writable`. `on_reset` comes at most once, and nothing after it. Callbacks may be set at any
    time.
    """

    __slots__ = (
        "_channel",
        "_data",
        "_delivering",
        "_end",
        "_ended",
        "_held",
        "_on_reset",
        "_paused",
        "_reason",
        "_wire",
        "_writable",
        "id",
    )

    def __init__(self, channel: Channel, state: wire.StreamState) -> None:
        self.id = state.id
        self._channel = channel
        self._wire = state
        self._held: deque[bytes] = deque()
        self._data: Callable[[bytes], None] | None = None
        self._end: Callable[[], None] | None = None
        self._on_reset: Callable[[str], None] | None = None
        self._writable: Callable[[], None] | None = None
        self._reason: str | None = None
        self._paused = False
        self._ended = False
        self._delivering = False

    def on_data(self, callback: Callable[[bytes], None]) -> None:
        self._data = callback
        self._channel._loop.call_soon(self._deliver)

    def on_end(self, callback: Callable[[], None]) -> None:
        """The host has half-closed: no more data comes; writing is still possible."""
        self._end = callback
        self._channel._loop.call_soon(self._deliver)

    def on_reset(self, callback: Callable[[str], None]) -> None:
        """The stream is dead in both directions; the callback gets the reason."""
        self._on_reset = callback
        self._channel._loop.call_soon(self._deliver)

    def on_writable(self, callback: Callable[[], None]) -> None:
        """Called after a `write` that returned False, once there is credit again."""
        self._writable = callback

    def pause(self) -> None:
        """Hold what comes from now on; the host may still send what its credit allows."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._deliver()

    @property
    def credit(self) -> int:
        """Bytes that may be written before `write` says False."""
        return max(0, self._wire.room)

    @property
    def open(self) -> bool:
        """Whether `write` makes sense: not ended by us, not reset."""
        return self._wire.sending

    def write(self, *pieces: wire.Buffer) -> bool:
        """Send them; False: the credit is used up, stop until `on_writable`.

        They are not copied: do not change them any more.

        Data for a stream that is reset is dropped (True: nobody needs to wait).

        Raises:
            BufferError: far more was written than the host gave credit for.
            ValueError: after `end()`.
        """
        if self._wire.room < -STREAM_QUEUE_LIMIT:
            raise BufferError(f"stream {self.id}: written on without waiting for on_writable")
        writable = self._channel._conn.streams.send(self._wire, *pieces)
        self._channel._lines.flush_soon()
        return writable

    def end(self) -> None:
        """Half-close, after what was written. Nothing happens when it was ended or reset before."""
        self._channel._conn.streams.end(self._wire)
        self._channel._lines.flush_soon()

    def reset(self, reason: str) -> None:
        """Kill both directions at once; the host sees `reason`. Our `on_reset` is not called."""
        self._channel._conn.streams.reset(self._wire, reason)
        self._channel._streams.pop(self.id, None)
        self._held.clear()
        self._channel._lines.flush_soon()

    def _received(self, data: bytes) -> None:
        if self._paused or self._data is None or self._held:
            self._held.append(data)
        else:
            self._channel._conn.streams.consumed(self._wire, len(data))
            self._data(data)

    def _host_ended(self) -> None:
        self._ended = True
        self._deliver()

    def _was_reset(self, reason: str) -> None:
        self._held.clear()
        self._reason = reason
        self._deliver()

    def _became_writable(self) -> None:
        if self._writable is not None:
            self._writable()

    def _deliver(self) -> None:
        """Hand over what is due: held data, then the end; or the reset. Callbacks may call us."""
        if self._reason is not None:
            callback, self._on_reset = self._on_reset, None
            if callback is not None:
                callback(self._reason)
            return
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._held and not self._paused and self._data is not None:
                chunk = self._held.popleft()
                self._channel._conn.streams.consumed(self._wire, len(chunk))
                self._data(chunk)
        finally:
            self._delivering = False
        self._channel._lines.flush_soon()
        if self._ended and not self._held and not self._paused and self._end is not None:
            callback_end, self._end = self._end, None
            callback_end()


class Channel:
    """Serves the host's calls over a port, for as long as the loop runs.

    Args:
        loop: runs everything here.
        open_port: gives a descriptor that we own and close, or raises OSError when there is none
            yet (it is then tried again); see `open_agent_port`.
        handlers: by method. A handler gets (params, call) and returns its result (a dict or None),
            raises CallError, or returns DEFERRED. Handlers run in the order of the calls and must
            not block. Any other exception answers the call with code `failed` and the traceback.
        hello: what the host shall know of us, as JSON: `{"agent": {"version": …, "digest": …}}`.
    """

    def __init__(
        self,
        loop: Loop,
        open_port: Callable[[], int],
        handlers: Mapping[str, Handler],
        hello: dict[str, Any],
    ) -> None:
        self._loop = loop
        self._handlers = handlers
        self._conn = wire.Connection(wire.Role.GUEST, hello)
        self._lines = Lines(loop, open_port, self._conn, self._dispatch)
        self._calls: dict[int, Call] = {}
        self._streams: dict[int, GuestStream] = {}
        self._settled: list[tuple[Callable[[], None], Timer]] = []
        self._on_session: Callable[[dict[str, Any]], None] | None = None
        self._takers: dict[type, Callable[[Any], None]] = {
            wire.CallReceived: self._on_call,
            wire.DataReceived: self._on_data,
            wire.Writable: self._on_writable,
            wire.StreamOpened: self._on_opened,
            wire.StreamEnded: self._on_ended,
            wire.StreamClosed: self._on_closed,
            wire.SessionStarted: self._on_session_started,
            wire.SessionEnded: self._on_session_ended,
        }

    def start(self) -> None:
        """Open the port and begin to serve."""
        self._lines.start()

    def close(self) -> None:
        """Stop serving and close the port; nothing that was queued is waited for."""
        self._lines.close()
        for _, timer in self._settled:
            timer.cancel()
        self._settled.clear()

    def move(self, line: Ends, over: Callable[[], None] = lambda: None) -> None:
        """Go on over another line, which is ours to close. When it ends `over` is called, and it
        goes on over the port again."""
        self._lines.move(line, over)

    @property
    def connected(self) -> bool:
        """Whether a host has said HELLO and is still there."""
        return self._conn.established

    @property
    def peer(self) -> dict[str, Any] | None:
        """The last host's HELLO."""
        return self._conn.peer

    def emit(self, name: str, payload: dict[str, Any]) -> int:
        """Tell the host of an event; it is kept and sent again until the host has stored it.

        Returns its id, counted from 1.
        """
        event_id = self._conn.emit(name, payload, time.time_ns())
        self._lines.flush_soon()
        return event_id

    @property
    def last_unstored_event(self) -> int:
        """The id of the newest event that the host has not stored yet; 0 when it has all."""
        return self._conn.last_unstored_event

    def stream(self, id: int) -> GuestStream:
        """The stream that a call's parameters name.

        Raises:
            CallError: `invalid`; the host has not opened it, or it is closed already.
        """
        stream = self._streams.get(id)
        if stream is None:
            raise CallError("invalid", f"there is no stream {id}")
        return stream

    def on_session(self, callback: Callable[[dict[str, Any]], None]) -> None:
        """Call `callback(host's HELLO)` when a new session began: earlier streams were reset."""
        self._on_session = callback

    def when_settled(self, callback: Callable[[], None], timeout: float) -> None:
        """Call `callback` once the host has received everything sent so far, at the latest after
        `timeout` seconds: for a last answer before the machine goes off."""

        def expire() -> None:
            self._settled.remove(entry)
            callback()

        entry = (callback, self._loop.call_later(timeout, expire))
        self._settled.append(entry)
        self._conn.ping()
        self._lines.flush_soon()

    # What the connection says.

    def _dispatch(self, events: list[wire.Event]) -> None:
        for event in events:
            take = self._takers.get(type(event))
            if take is not None:  # else it is for the host's end
                take(event)
        if self._settled and self._conn.settled:
            for callback, timer in self._settled:
                timer.cancel()
                self._loop.call_soon(callback)
            self._settled.clear()

    def _on_data(self, event: wire.DataReceived) -> None:
        if (stream := self._streams.get(event.id)) is not None:
            stream._received(event.data)

    def _on_writable(self, event: wire.Writable) -> None:
        if (stream := self._streams.get(event.id)) is not None:
            stream._became_writable()

    def _on_opened(self, event: wire.StreamOpened) -> None:
        self._streams[event.stream.id] = GuestStream(self, event.stream)

    def _on_ended(self, event: wire.StreamEnded) -> None:
        if (stream := self._streams.get(event.id)) is not None:
            stream._host_ended()

    def _on_closed(self, event: wire.StreamClosed) -> None:
        stream = self._streams.pop(event.id, None)
        if stream is not None and event.reason is not None:
            stream._was_reset(event.reason)

    def _on_session_started(self, event: wire.SessionStarted) -> None:
        if self._on_session is not None:
            self._on_session(event.peer)

    def _on_session_ended(self, event: wire.SessionEnded) -> None:
        calls, self._calls = self._calls, {}
        streams, self._streams = self._streams, {}
        for call in calls.values():
            call._orphan()
        for stream in streams.values():
            stream._was_reset(event.reason)

    def _on_call(self, event: wire.CallReceived) -> None:
        method = event.method
        call = self._calls[event.id] = Call(self, event.id, method)
        handler = self._handlers.get(method)
        try:
            if handler is None:
                raise CallError("unsupported", f"this agent does not know {method}")
            result = handler(event.params, call)
            if result is not DEFERRED:
                call.reply(_as_result(method, result))
        except CallError as error:
            call.fail(error.code, error.message, error.data)
        except Exception as error:  # noqa: BLE001  # a handler's bug is the caller's to see
            call.fail("failed", f"{method}: {error or type(error).__name__}", _traceback(error))

    def _answer(self, id: int, result: dict[str, Any] | None) -> None:
        self._conn.reply(id, result)
        del self._calls[id]
        self._lines.flush_soon()

    def _refuse(self, id: int, code: str, message: str, data: dict[str, Any] | None) -> None:
        self._conn.fail(id, code, message, data)
        del self._calls[id]
        self._lines.flush_soon()


def _as_result(method: str, result: object) -> dict[str, Any] | None:
    if result is None or isinstance(result, dict):
        return result
    raise TypeError(f"the handler of {method} returned a {type(result).__name__}, not a dict")


def _traceback(error: Exception) -> dict[str, Any]:
    import traceback  # here: rarely needed, and memory in the guest is dear

    return {"traceback": "".join(traceback.format_exception(error))}
