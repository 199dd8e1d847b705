"""Requests, responses and the route table, as values. Sans-I/O: nothing here knows a socket.

A handler is `async (engine, request) -> Response | Hijack`. Paths come without their `/v1.NN`
prefix.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs, unquote

from wherry.errors import InvalidInput, NotFound, WherryError
from wherry.osutil import disk_error, disk_hint

if TYPE_CHECKING:
    from wherry.engine.engine import Engine

API_VERSION = (1, 50)
"""The newest version of the Engine API that we speak (Docker 28.2)."""

MIN_API_VERSION = (1, 24)
_VERSION_PREFIX = re.compile(r"/v(\d+)\.(\d+)(?=/)")


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `body` is read in whole, but for handlers that are `Streamed`: these take
    `chunks` as they arrive."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    version: tuple[int, int] = API_VERSION
    args: Mapping[str, str] = field(default_factory=dict)
    chunks: AsyncIterator[bytes] | None = None

    def incoming(self) -> AsyncIterator[bytes]:
        """The body of a `Streamed` handler's request, piece by piece, of any length.

        Raises:
            ConnectionResetError: while iterating, when the client closes in the middle.
        """
        assert self.chunks is not None, "the route's handler is not Streamed"
        return self.chunks

    def text(self, name: str, default: str = "") -> str:
        values = self.query.get(name)
        return values[-1] if values else default

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean as Docker's clients write it: 1, true, True, or 0, false, empty."""
        values = self.query.get(name)
        if not values:
            return default
        return values[-1].strip().lower() not in ("", "0", "no", "false", "none")

    def number(self, name: str, default: int | None = None) -> int | None:
        """Raises InvalidInput when the parameter is there and not a whole number."""
        value = self.text(name)
        if not value:
            return default
        try:
            return int(value)
        except ValueError:
            raise InvalidInput(f"{name} must be a whole number, not {value!r}") from None

    def filters(self) -> dict[str, list[str]]:
        """`filters`: `{"label": ["a=b"]}`, or from older clients `{"label": {"a=b": true}}`."""
        raw = self.text("filters")
        if not raw:
            return {}
        try:
            data = json.loads(raw)
            return {
                str(key): [
                    str(item) for item in (value if isinstance(value, list) else dict(value))
                ]
                for key, value in data.items()
            }
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidInput(f"filters is not a JSON object of lists: {raw}") from error

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; an empty body is an empty object. Raises InvalidInput."""
        if not self.body.strip():
            return {}
        try:
            data = json.loads(self.body)
        except ValueError as error:
            raise InvalidInput(f"the request body is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise InvalidInput("the request body must be a JSON object")
        return data


@dataclass(frozen=True, slots=True)
class Response:
    """`body` is bytes, or an iterator that is sent item by item, as soon as one is there: chunked,
    unless its `length` is known.

    `then` is called when everything was sent.
    """

    status: int = 200
    body: bytes | AsyncIterator[bytes] = b""
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    then: Callable[[], None] | None = None
    length: int | None = None


class RawConnection(Protocol):
    """What a hijacked connection offers: bytes in both directions and a half-close."""

    async def read(self) -> bytes: ...
    async def write(self, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Hijack:
    """The connection becomes a byte stream: `run` is called after the 101 (or 200) is sent."""

    run: Callable[[RawConnection], Awaitable[None]]
    content_type: str


Handler = Callable[["Engine", Request], Coroutine[Any, Any, Response | Hijack]]


@dataclass(frozen=True, slots=True)
class Streamed:
    """Decorator of a handler that reads its request's body itself (`Request.incoming`).

    The body has no limit then, and it may be read while the answer is being sent. What the handler
    leaves is not waited for: the connection closes.
    """

    handler: Handler

    def __call__(self, engine: Engine, request: Request) -> Coroutine[Any, Any, Response | Hijack]:
        return self.handler(engine, request)


Route = tuple[str, str, Handler]
"""Method, path pattern, handler."""


class Routes:
    """Method and path pattern to handler. `{name}` is a segment, `{name:path}` has slashes too."""

    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = []

    def add(self, method: str, pattern: str, handler: Handler) -> None:
        regex = re.sub(r"\{(\w+):path\}", r"(?P<\1>.+)", pattern)
        regex = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", regex)
        self._routes.append((method, re.compile(regex), handler))

    def find(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        """Raises NotFound (404), or WherryError 405 when only the method is wrong."""
        wrong_method = False
        for known, regex, handler in self._routes:
            if match := regex.fullmatch(path):
                if known == method or (known == "GET" and method == "HEAD"):
                    return handler, {
                        key: unquote(value) for key, value in match.groupdict().items()
                    }
                wrong_method = True
        if wrong_method:
            raise WherryError(f"{method} is not allowed on {path}", http_status=405)
        raise NotFound("page not found")


def split_path(target: str) -> str:
    """The path of a request target, without version and query."""
    path = target.partition("?")[0]
    match = _VERSION_PREFIX.match(path)
    return path[match.end() :] if match else path


def split_target(target: str) -> tuple[str, tuple[int, int], dict[str, list[str]]]:
    """A request target to (path without version, version, query).

    Raises:
        InvalidInput: the version is newer than ours, or older than the oldest that is supported.
    """
    path, _, query = target.partition("?")
    version = API_VERSION
    if match := _VERSION_PREFIX.match(path):
        version = (int(match[1]), int(match[2]))
        path = path[match.end() :]
        _check_version(version)
    return path, version, parse_qs(query, keep_blank_values=True)


def _check_version(version: tuple[int, int]) -> None:
    asked = ".".join(map(str, version))
    if version > API_VERSION:
        newest = ".".join(map(str, API_VERSION))
        raise InvalidInput(
            f"client version {asked} is too new. Maximum supported API version is {newest}"
        )
    if version < MIN_API_VERSION:
        oldest = ".".join(map(str, MIN_API_VERSION))
        raise InvalidInput(
            f"client version {asked} is too old. Minimum supported API version is {oldest},"
            " please upgrade your client to a newer version"
        )


def json_response(data: object, status: int = 200) -> Response:
    body = json.dumps(data, separators=(",", ":")).encode() + b"\n"
    return Response(status, body, "application/json")


def error_response(error: WherryError, *, separate_hint: bool) -> Response:
    """Docker's `{"message": …}`; the hint stands in a key of its own for clients that know it."""
    if error.http_status == 304:
        return Response(304)
    body: dict[str, object] = {"message": error.message}
    if error.hint and separate_hint:
        body["hint"] = error.hint
    elif error.hint:
        body["message"] = f"{error.message} ({error.hint})"
    if separate_hint:
        body["exit_code"] = error.exit_code
    return json_response(body, error.http_status)


def json_lines(events: AsyncIterator[Mapping[str, object]]) -> Response:
    """A stream of JSON objects, one per line; an error in mid-stream becomes the last line."""

    async def lines() -> AsyncIterator[bytes]:
        try:
            async for event in events:
                yield json.dumps(event, separators=(",", ":")).encode() + b"\r\n"
        except WherryError as error:
            yield _last_line(error)
        except OSError as error:
            if disk_hint(error) is None:
                raise
            yield _last_line(disk_error(error))

    return Response(200, lines(), "application/json")


def _last_line(error: WherryError) -> bytes:
    detail: dict[str, object] = {"message": error.message}
    if error.hint:
        detail["hint"] = error.hint
    last = {"errorDetail": detail, "error": error.message}
    return json.dumps(last, separators=(",", ":")).encode() + b"\r\n"


async def byte_response(parts: AsyncIterator[bytes], content_type: str) -> Response:
    """A body that is made while it is sent. Its first bytes are waited for: what goes wrong before
    them is an error like any other; after them the connection is cut, which clients notice."""
    first = await anext(parts, b"")

    async def body() -> AsyncIterator[bytes]:
        if first:
            yield first
        try:
            async for part in parts:
                yield part
        except WherryError as error:
            raise ConnectionAbortedError(error.message) from error

    return Response(200, body(), content_type)
