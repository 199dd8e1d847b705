"""What the wire tells its owner, and the JSON inside messages.

Sans-I/O. The rule: what a peer sent is checked for shape here, once; whoever gets an event need not
check again. Stdlib only, any OS.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from wherry_guest import frames
from wherry_guest.outbox import StreamState

MAX_MESSAGE: Final = 8 * 1024 * 1024
"""Bytes of one call, result, error or event."""


class ProtocolError(Exception):
    """The peer sent what no right peer sends."""


class SessionStarted(NamedTuple):
    """A session began from nothing. `peer` is the other end's HELLO."""

    peer: dict[str, Any]


class SessionResumed(NamedTuple):
    """The session went on after a cut or damage; nothing was lost."""

    peer: dict[str, Any]


class SessionEnded(NamedTuple):
    """Calls and streams of the session are void; the reason is for people."""

    reason: str


class Incompatible(NamedTuple):
    """The peer speaks another major version; nothing can be done with it."""

    peer: dict[str, Any]


class Broken(NamedTuple):
    """The peer broke the protocol; the session was ended for it."""

    reason: str


class Silent(NamedTuple):
    """The peer answers no pings."""


class CallReceived(NamedTuple):
    id: int
    method: str
    params: dict[str, Any]


class ResultReceived(NamedTuple):
    id: int
    result: dict[str, Any] | None


class ErrorReceived(NamedTuple):
    id: int
    code: str
    message: str
    data: dict[str, Any] | None


class EventReceived(NamedTuple):
    """An event; acknowledge it by `ack_event` when it is stored."""

    id: int
    name: str
    time_ns: int
    payload: dict[str, Any]


class StreamOpened(NamedTuple):
    stream: StreamState


class DataReceived(NamedTuple):
    """Data of a stream; call `consumed` when it has gone where it should."""

    id: int
    data: bytes


class StreamEnded(NamedTuple):
    """The peer's half of the stream is complete."""

    id: int


class StreamClosed(NamedTuple):
    """Both halves are complete (reason None), or the peer reset the stream."""

    id: int
    reason: str | None


class Writable(NamedTuple):
    """A stream that had run out of credit has some again."""

    id: int


Event = (
    SessionStarted
    | SessionResumed
    | SessionEnded
    | Incompatible
    | Broken
    | Silent
    | CallReceived
    | ResultReceived
    | ErrorReceived
    | EventReceived
    | StreamOpened
    | DataReceived
    | StreamEnded
    | StreamClosed
    | Writable
)


def encode(value: object, limit: int = MAX_MESSAGE) -> bytes:
    """`value` as JSON; surrogates, as in undecodable file names, survive.

    Raises:
        TypeError, ValueError: it is not JSON, or longer than `limit` bytes.
    """
    text = _ENCODER.encode(value)
    if len(text) > limit:
        raise ValueError(f"a message of {len(text)} bytes; {limit} are allowed")
    return text.encode("ascii")


def decode_object(payload: bytes) -> dict[str, Any]:
    """A payload that must be a JSON object.

    Raises:
        ProtocolError: it is not.
    """
    value = _decode(payload)
    if not isinstance(value, dict):
        raise ProtocolError("a message is not a JSON object")
    return value


def integer(message: dict[str, Any], key: str, low: int, high: int) -> int:
    """A whole number of `low`..`high` in a message.

    Raises:
        ProtocolError: it is missing or something else.
    """
    value = message.get(key)
    if type(value) is not int or not low <= value <= high:
        raise ProtocolError(f"{key!r} is missing or out of range")
    return value


def decode_message(type: int, id: int, payload: bytes) -> Event:
    """The event that a complete call, result, error or event message is.

    Raises:
        ProtocolError: it has not the shape that docs/wire.md gives it.
    """
    return _DECODERS[type](id, payload)


_DECODER: Final = json.JSONDecoder()
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def _decode(payload: bytes) -> object:
    try:
        text = payload.decode("utf-8")
        value, end = _DECODER.raw_decode(text)  # half the time of json.loads
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a message is not JSON") from error
    if end != len(text):
        raise ProtocolError("a message has bytes after its JSON")
    result: object = value
    return result


def _text(message: dict[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str):
        raise ProtocolError(f"{key!r} is missing or not a string")
    return value


def _object(message: dict[str, Any], key: str) -> dict[str, Any]:
    value = message.get(key)
    if not isinstance(value, dict):
        raise ProtocolError(f"{key!r} is missing or not an object")
    return value


def _call(id: int, payload: bytes) -> CallReceived:
    message = decode_object(payload)
    return CallReceived(id, _text(message, "method"), _object(message, "params"))


def _result(id: int, payload: bytes) -> ResultReceived:
    value = _decode(payload)
    if value is None or isinstance(value, dict):
        return ResultReceived(id, value)
    raise ProtocolError("a result is neither an object nor null")


def _error(id: int, payload: bytes) -> ErrorReceived:
    message = decode_object(payload)
    data = message.get("data")
    if not (data is None or isinstance(data, dict)):
        raise ProtocolError("'data' is neither an object nor null")
    return ErrorReceived(id, _text(message, "code"), _text(message, "message"), data)


def _event(id: int, payload: bytes) -> EventReceived:
    message = decode_object(payload)
    time_ns = integer(message, "time_ns", 0, 2**63 - 1)
    return EventReceived(id, _text(message, "name"), time_ns, _object(message, "payload"))


_DECODERS: Final[dict[int, Callable[[int, bytes], Event]]] = {
    frames.CALL: _call,
    frames.RESULT: _result,
    frames.ERROR: _error,
    frames.EVENT: _event,
}
