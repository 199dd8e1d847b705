"""The CLI's way to the engine: HTTP/1.1 over its socket or pipe, and hijacked streams. Blocking.

An engine that does not answer is started (`wherry.startup`), and a client can connect at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import h11

from wherry import __version__, succession
from wherry.connection import NO_ENGINE, Connection, connect
from wherry.errors import EngineUnreachable, StorageError, WherryError
from wherry.exchange import Exchange, Sender
from wherry.hung import EngineHung, Guard
from wherry.paths import Home

_API = "/v1.50"
_SAFE = "/:@!$&'()*+,;=%"
"""RFC 3986, section 3.3: what a path may have as it is, besides letters, digits and `-._~`."""

_LACKING = (400, 404, 405, 501)
"""Answers of an engine that does not have a route, or not this version of the API."""


class EngineError(WherryError):
    """The engine's own answer: its status, message, hint and exit code."""


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


class Client:
    """A client of one machine's engine. Requests share a connection; streams have their own."""

    def __init__(self, home: Home, machine: str) -> None:
        self.home = home
        self.machine = machine
        self.paths = home.machine(machine)
        self._guard = Guard(self.paths, machine)
        self._shared: Exchange | None = None
        self._may_replace = True
        self._reads: Path | None = None
        """The socket of an engine that only reads, for this client."""

    def close(self) -> None:
        """Close the shared connection; the next request opens another."""
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def running(self) -> bool:
        """True when an engine answers; none is started."""
        try:
            self._shared = self._shared or Exchange(connect(self.paths), self._guard)
        except OSError:
            return False
        return True

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request and its whole answer.

        Raises:
            EngineError: the engine answered with an error.
            EngineUnreachable: no engine answers and none could be started.
        """
        fresh = self._shared is None
        if self._shared is None:
            self._shared = Exchange(self._open(), self._guard)
        http = self._shared
        try:
            http.send(method, _target(path, query), body, headers)
            status, received = http.response()
            reply = Reply(status, received, b"".join(http.body()))
        except EngineHung:
            self.close()
            if method != "GET":  # it may have been carried out
                raise
            return self.request(method, path, query=query, body=body, headers=headers)
        except (ConnectionError, h11.RemoteProtocolError) as error:
            self.close()
            if fresh or method != "GET":  # what may have been carried out is not sent twice
                raise self._ended() from error
            return self.request(method, path, query=query, body=body, headers=headers)
        if not http.reusable():
            self._shared = None
        _raise_for(reply)
        return reply

    def lines(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Generator[dict[str, Any], None, None]:
        """A stream of JSON objects, one per line; closing it closes the connection. Raises as
        `request`, also in mid-stream."""
        yield from _json_lines(self.stream(method, path, query=query, body=body, headers=headers))

    def upload(
        self,
        path: str,
        chunks: Iterable[bytes],
        *,
        query: Mapping[str, object] | None = None,
        content_type: str = "application/x-tar",
        method: str = "POST",
    ) -> Iterator[dict[str, Any]]:
        """Send a body of any length; the answer is a stream of JSON objects, as in `lines`.

        Args:
            chunks: iterated in another thread; what that raises is raised here.
        """
        http = Exchange(self._open(), self._guard)
        sender = Sender(http, chunks)
        try:
            http.begin_upload(method, _target(path, query), content_type)
            sender.start()
            status, headers = http.response()
            if status >= 400:
                _raise_for(Reply(status, headers, b"".join(http.body())))
            yield from _json_lines(http.body())
        except (ConnectionError, h11.RemoteProtocolError) as error:
            raise sender.error or self._ended() from error
        finally:
            http.close()

    def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[bytes]:
        """The answer's body as it arrives, on a connection of its own; the request is sent now."""
        http = Exchange(self._open(), self._guard)
        try:
            http.send(method, _target(path, query), body, headers)
            status, received = http.response()
        except (ConnectionError, h11.RemoteProtocolError) as error:
            http.close()
            raise self._ended() from error
        if status >= 400:
            _raise_for(Reply(status, received, b"".join(self._parts(http))))
        return self._parts(http)

    def hijack(
        self, path: str, *, query: Mapping[str, object] | None = None, body: object = None
    ) -> tuple[Connection, bytes]:
        """POST that turns the connection into a byte stream.

        Returns:
            The connection, and the bytes that came right behind the answer's head.
        """
        http = Exchange(self._open(), self._guard)
        try:
            http.send("POST", _target(path, query), body, upgrade=True)
            status, headers = http.response()
        except (ConnectionError, h11.RemoteProtocolError) as error:
            http.close()
            raise self._ended() from error
        if status != 101:
            _raise_for(Reply(status, headers, b"".join(self._parts(http))))
            raise EngineError(f"the engine answered {status} instead of opening a stream")
        return http.detach()

    def _parts(self, http: Exchange) -> Iterator[bytes]:
        try:
            yield from http.body()
        except (ConnectionError, h11.RemoteProtocolError) as error:
            raise self._ended() from error
        finally:
            http.close()

    def replace_engine(self, *, force: bool = False) -> None:
        """End the engine and start one of this program; the machine and its containers run on.

        Args:
            force: also when that cuts off somebody.

        Raises:
            EngineError: the engine is in the middle of something (409), or does not know how.
            EngineUnreachable: there was none, and none could be started.
        """
        self._may_replace = False
        from wherry.osutil import lock_file, private_directory
        from wherry.startup import START_DEADLINE, listen_and_spawn

        private_directory(self.home.root)
        private_directory(self.paths.root)
        with lock_file(self.paths.start_lock, timeout=START_DEADLINE):
            if self.running():
                query = {"python": sys.executable}
                way = "stop" if force else "yield"
                try:
                    reply = self.request("POST", f"/wherry/v1/engine/{way}", query=query)
                except EngineError as error:
                    if error.http_status not in _LACKING:
                        raise
                    raise EngineError(
                        "it is too old to say whether it is in the middle of something",
                        hint=f"{succession.RESTART} --force ends it; containers run on",
                    ) from error
                answer = reply.json()
                self.close()
                activated = answer is not None and answer["activated"]
                if force or activated or self.paths.pipe is not None:
                    with lock_file(self.paths.engine_lock, timeout=START_DEADLINE):
                        pass
                else:  # at once: clients that come now wait for the new one
                    self._shared = Exchange(listen_and_spawn(self.home, self.machine), self._guard)
        self.request("GET", "/_ping")

    def _replace_older(self) -> None:
        """Once per client: see `wherry.succession`."""
        self._may_replace = False
        older = succession.older_engine(self.paths)
        if older is None or not self.running():
            return
        try:
            self.replace_engine()
        except EngineError as error:
            succession.notice(
                f"the running engine is {older.version}, older than this command ({__version__}),"
                f" and goes on: {error.message}" + (f" ({error.hint})" if error.hint else "")
            )
        finally:
            self.close()

    def _open(self) -> Connection:
        if self._guard.suspicious():
            self._guard.settle()
        if self._may_replace:
            self._replace_older()
        try:
            return connect(self.paths, self._reads)
        except OSError:
            pass  # there is none
        # Here, since commands that find an engine should not pay for these imports.
        from wherry.startup import cannot_write, reading_engine, start_engine

        try:
            return start_engine(self.home, self.machine)
        except StorageError as error:
            if not cannot_write(error) or not self.paths.root.is_dir():
                raise
            self._reads = reading_engine(self.home, self.machine)
            return connect(self.paths, self._reads)

    def _ended(self) -> EngineUnreachable:
        from wherry.startup import last_line

        tail = last_line(self.paths.engine_log)
        what = "broke off its answer" if self._guard.alive() else "ended"
        return EngineUnreachable(
            f"the engine of machine {self.machine!r} {what}" + (f": {tail}" if tail else ""),
            hint=f"its log is {self.paths.engine_log}",
        )


def _json_lines(parts: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """JSON objects, one per line. Raises EngineError for one that tells of an error."""
    pending = b""
    for part in parts:
        *complete, pending = (pending + part).split(b"\n")
        for line in complete:
            if line.strip():
                yield _checked_line(json.loads(line))


def _target(path: str, query: Mapping[str, object] | None) -> str:
    """Path and query; None is left out, True and False are 1 and 0, a tuple's items stand one by
    one, other objects are JSON. In the path stands what a user typed: `?` or a space begin nothing
    in it. `%` stays: who has a `/` in one segment has quoted it."""
    values: dict[str, str | list[str]] = {}
    for name, value in (query or {}).items():
        if isinstance(value, bool):
            values[name] = str(int(value))
        elif isinstance(value, tuple):
            values[name] = [str(item) for item in value]
        elif isinstance(value, (dict, list)):
            values[name] = json.dumps(value)
        elif value is not None:
            values[name] = str(value)
    prefix = "" if path.startswith("/wherry/") else _API
    path = quote(path, safe=_SAFE, errors="surrogateescape")
    return f"{prefix}{path}" + (f"?{urlencode(values, doseq=True)}" if values else "")


def _raise_for(reply: Reply) -> None:
    if reply.status < 400:
        return
    try:
        data = reply.json()
        message, hint = str(data["message"]), data.get("hint")
        exit_code = int(data.get("exit_code", 1))
    except (ValueError, TypeError, KeyError):
        message, hint, exit_code = f"the engine answered with status {reply.status}", None, 1
    if NO_ENGINE in reply.headers:
        raise EngineUnreachable(message, hint=hint, exit_code=exit_code)
    if reply.status in _LACKING:
        message, hint = succession.does_not_know(message, reply.headers.get("server", "")) or (
            message,
            hint,
        )
    raise EngineError(message, hint=hint, exit_code=exit_code, http_status=reply.status)


def _checked_line(line: dict[str, Any]) -> dict[str, Any]:
    if "error" in line:
        detail = line.get("errorDetail") or {}
        raise EngineError(str(line["error"]), hint=detail.get("hint"))
    return line
