"""The CLI's way to the engine: HTTP/1.1 over its socket or pipe, and hijacked streams. Blocking.

An engine that does not answer is started: the listening socket is bound here and inherited by the
engine, so that a client can connect at once and nobody polls for the engine to come up. A pipe
cannot be inherited: there the client waits for it, or for the end of the engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import h11

from wherry import __version__, succession
from wherry.connection import Connection, connect
from wherry.errors import EngineUnreachable, WherryError
from wherry.exchange import Exchange, Sender
from wherry.hung import EngineHung, Guard
from wherry.paths import Home, MachinePaths

_API = "/v1.50"
_SAFE = "/:@!$&'()*+,;=%"
"""RFC 3986, section 3.3: what a path may have as it is, besides letters, digits and `-._~`."""
_START_DEADLINE = 30.0
"""Seconds that another client may take to start the engine."""

_PIPE_POLL_SECONDS = 0.02

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

        private_directory(self.home.root)
        private_directory(self.paths.root)
        with lock_file(self.paths.start_lock, timeout=_START_DEADLINE):
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
                    with lock_file(self.paths.engine_lock, timeout=_START_DEADLINE):
                        pass
                else:  # at once: clients that come now wait for the new one
                    self._shared = Exchange(_listen_and_spawn(self.home, self.machine), self._guard)
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
            return connect(self.paths)
        except OSError:
            return start_engine(self.home, self.machine)

    def _ended(self) -> EngineUnreachable:
        tail = _last_line(self.paths)
        return EngineUnreachable(
            f"the engine of machine {self.machine!r} ended" + (f": {tail}" if tail else ""),
            hint=f"its log is {self.paths.engine_log}",
        )


def start_engine(home: Home, machine: str) -> Connection:
    """Start the engine of `machine` unless another client just did; returns a connection to it.

    Raises:
        EngineUnreachable: it could not be started.
    """
    # Here, since commands that find an engine should not pay for these imports.
    from wherry.osutil import lock_file, private_directory

    paths = home.machine(machine)
    private_directory(home.root)
    private_directory(paths.root)
    private_directory(paths.sockets)
    with lock_file(paths.start_lock, timeout=_START_DEADLINE):
        try:
            return connect(paths)
        except OSError:
            pass  # still none: it is ours to start
        try:
            if paths.pipe is not None:
                return _await_pipe(paths, _spawn_engine(home, machine, subprocess.DEVNULL))
            return _listen_and_spawn(home, machine)
        except OSError as error:
            raise EngineUnreachable(f"cannot start the engine: {error}") from error


def _listen_and_spawn(home: Home, machine: str) -> Connection:
    """A connection to the engine that is started for it. Hold the start lock."""
    from wherry.osutil import listen_unix

    paths = home.machine(machine)
    with listen_unix(paths.api_socket) as listener:
        _spawn_engine(home, machine, listener.fileno())
        return connect(paths)


def _spawn_engine(home: Home, machine: str, stdin: int) -> int:
    """Its pid. `stdin`: the listening socket that it inherits, where it does."""
    from wherry.osutil import spawn_detached

    paths = home.machine(machine)
    inherited = ["--inherited"] if paths.pipe is None else []
    command = [sys.executable, "-m", "wherry.engine", "--machine", machine, *inherited]
    return spawn_detached(
        [*command, "--spawned-ns", str(time.time_ns())],
        log=paths.engine_log,
        cwd=home.root,
        env={**os.environ, "WHERRY_HOME": os.fspath(home.root)},
        stdin=stdin,
    )


def _await_pipe(paths: MachinePaths, engine: int) -> Connection:
    """Connect to an engine that was just started; wait for as long as it lives, as for a socket's
    answer: it serves once it has taken over what runs."""
    from wherry.osutil import exit_status

    while True:
        try:
            return connect(paths)
        except FileNotFoundError as error:
            if exit_status(engine, within=_PIPE_POLL_SECONDS) is not None:
                message = f"the engine ended: {_last_line(paths)}"
                raise EngineUnreachable(message, hint=f"see {paths.engine_log}") from error


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


def _last_line(paths: MachinePaths) -> str:
    try:
        with paths.engine_log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
            lines = log.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    words = [line for line in lines if " INFO " not in line]
    return words[-1] if words else ""
