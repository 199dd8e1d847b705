"""HTTP/1.1 on one connection to an engine: requests, answers as they arrive, uploads. Blocking."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping

import h11

from wherry import __version__
from wherry.connection import Connection
from wherry.hung import Guard, Guarded

READ_SIZE = 256 * 1024


class Exchange:
    """One connection; h11 speaks the protocol."""

    def __init__(self, connection: Connection, guard: Guard) -> None:
        self._socket = connection
        self._guard = guard
        self._http = h11.Connection(h11.CLIENT)

    def send(
        self,
        method: str,
        target: str,
        body: object,
        more: Mapping[str, str] | None = None,
        *,
        upgrade: bool = False,
    ) -> None:
        payload = b"" if body is None else json.dumps(body).encode()
        headers = [
            ("Host", "wherry"),
            ("User-Agent", f"wherry/{__version__}"),
            ("Content-Length", str(len(payload))),
            *(more or {}).items(),
        ]
        if body is not None:
            headers.append(("Content-Type", "application/json"))
        if upgrade:
            headers += [("Connection", "Upgrade"), ("Upgrade", "tcp")]
        events: list[h11.Event] = [h11.Request(method=method, target=target, headers=headers)]
        if payload:
            events.append(h11.Data(data=payload))
        events.append(h11.EndOfMessage())
        self._socket.sendall(b"".join(self._http.send(event) or b"" for event in events))

    def begin_upload(self, method: str, target: str, content_type: str) -> None:
        """Send the head of a request whose body comes by `upload_piece`."""
        headers = [
            ("Host", "wherry"),
            ("User-Agent", f"wherry/{__version__}"),
            ("Transfer-Encoding", "chunked"),
            ("Content-Type", content_type),
        ]
        request = h11.Request(method=method, target=target, headers=headers)
        self._socket.sendall(self._http.send(request) or b"")

    def upload_piece(self, data: bytes) -> None:
        """Send a piece of the body, the empty one at its end. From one other thread: h11 is only
        asked by the one that reads."""
        self._socket.sendall(b"%x\r\n" % len(data))
        self._socket.sendall(data)
        self._socket.sendall(b"\r\n")

    def abort(self) -> None:
        """End the connection under whoever waits for it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def response(self) -> tuple[int, dict[str, str]]:
        """Status and headers; their names in lower case."""
        while True:
            event = self._event()
            if isinstance(event, (h11.Response, h11.InformationalResponse)):
                if event.status_code == 100:
                    continue
                headers = {
                    name.decode("ascii"): value.decode("latin-1") for name, value in event.headers
                }
                return event.status_code, headers
            raise ConnectionResetError("the engine closed the connection")

    def body(self) -> Iterator[bytes]:
        while True:
            event = self._event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise ConnectionResetError("the engine closed the connection")

    def reusable(self) -> bool:
        """Make ready for the next request, if the connection can carry one."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            return True
        self.close()
        return False

    def detach(self) -> tuple[Connection, bytes]:
        """The connection, still guarded, and what came behind the answer's head."""
        return Guarded(self._socket, self._guard), bytes(self._http.trailing_data[0])

    def close(self) -> None:
        self._socket.close()

    def _event(self) -> object:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._guard.wait_readable(self._socket)
            self._http.receive_data(self._socket.recv(READ_SIZE))


class Sender:
    """Sends a body in a thread of its own, so that an early answer is heard."""

    def __init__(self, http: Exchange, chunks: Iterable[bytes]) -> None:
        self.error: BaseException | None = None
        """What `chunks` raised."""
        self._http = http
        self._chunks = chunks

    def start(self) -> None:
        # A daemon: when the engine has refused the body, nobody waits for its next piece.
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            for chunk in self._chunks:
                if chunk and not self._send(chunk):
                    return
        except BaseException as error:  # noqa: BLE001 it is raised by the thread that reads
            self.error = error
            self._http.abort()
            return
        self._send(b"")

    def _send(self, data: bytes) -> bool:
        """False when the engine takes no more: its answer tells why."""
        try:
            self._http.upload_piece(data)
        except OSError:
            return False
        return True
