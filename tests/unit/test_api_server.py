"""The HTTP server and the CLI's client against each other, over a real Unix socket."""

from __future__ import annotations

import asyncio
import itertools
import json
import queue
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wherry.api.bodies import blocking, from_thread
from wherry.api.http import Request, Response, Routes, Streamed, json_lines
from wherry.api.server import serve
from wherry.client import Client, EngineError
from wherry.engine.model import Container, Event, ExitStatus, LogFrame, Status
from wherry.errors import Conflict, InvalidInput, NotFound
from wherry.osutil import listen_unix
from wherry.paths import Home

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="the API is served on a Unix socket here"
)

MODEL = Container(
    id="ab" * 32,
    name="one",
    created_ns=1_700_000_000_000_000_000,
    image="localhost/busybox",
    image_id="sha256:" + "cd" * 32,
    manifest_digest="sha256:" + "ef" * 32,
    config={"Cmd": ["sh"], "Tty": False},
    host_config={},
    layers=(),
    status=Status.RUNNING,
    pid=7,
    started_ns=1_700_000_000_000_000_000,
)


class Echo:
    """An attachment that sends back what it gets: on stdout, and a farewell on stderr."""

    tty = False

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        self.closed = False

    async def frames(self) -> AsyncIterator[tuple[int, bytes]]:
        while (frame := await self.queue.get()) is not None:
            yield frame

    async def write(self, data: bytes) -> None:
        self.queue.put_nowait((1, data))

    async def end_input(self) -> None:
        self.queue.put_nowait((2, b"bye"))
        self.queue.put_nowait(None)

    async def aclose(self) -> None:
        self.closed = True


class FakeContainers:
    def __init__(self) -> None:
        self.created: dict[str, Any] = {}
        self.exit: asyncio.Future[ExitStatus] | None = None
        self.cancelled = threading.Event()
        self.attachment = Echo()
        self.paused = False

    async def create(
        self, name: str | None, config: dict[str, Any], host_config: dict[str, Any], platform: Any
    ) -> Container:
        if name == "taken":
            raise Conflict("name taken is in use", hint="choose another")
        self.created = config
        return MODEL

    def get(self, ref: str) -> Container:
        if ref not in ("one", MODEL.id):
            raise NotFound(f"No such container: {ref}")
        return MODEL

    def list(self, **_options: Any) -> list[Container]:
        return [MODEL]

    def waiter(self, ref: str, condition: str) -> asyncio.Future[ExitStatus]:
        self.exit = asyncio.get_running_loop().create_future()
        return self.exit

    async def stop(self, ref: str, **_options: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def attach(self, ref: str, **_options: Any) -> Echo:
        return self.attachment

    async def prepare_logs(self, ref: str) -> None:
        if self.paused:
            raise Conflict("the machine is paused")

    async def logs(self, ref: str, **options: Any) -> AsyncIterator[LogFrame]:
        yield LogFrame(1, 1, b"line\n")
        if options["follow"]:
            raise Conflict("the machine went away")


class FakeEvents:
    async def subscribe(self, **_options: Any) -> AsyncIterator[Event]:
        yield Event("container", "start", MODEL.id, 5)
        raise Conflict("no more")


@pytest.fixture
def engine() -> SimpleNamespace:
    volumes = SimpleNamespace(mount_point=str)
    containers = FakeContainers()

    async def with_fresh_health(ref: str) -> Container:
        return containers.get(ref)

    async def wake_for(_what: str) -> None:
        return

    return SimpleNamespace(
        containers=containers,
        events=FakeEvents(),
        volumes=volumes,
        lives=SimpleNamespace(with_fresh_health=with_fresh_health),
        presence=SimpleNamespace(working=lambda _what: nullcontext()),
        idle=SimpleNamespace(wake_for=wake_for),
    )


@pytest.fixture
def client(engine: SimpleNamespace) -> Iterator[Client]:
    with tempfile.TemporaryDirectory(prefix="wh") as directory:
        home = Home(Path(directory))
        paths = home.machine("default")
        paths.root.mkdir(parents=True)
        listener = listen_unix(paths.api_socket)
        stop = asyncio.Event()
        running = threading.Event()

        async def main() -> None:
            engine.loop = asyncio.get_running_loop()
            running.set()
            await serve(engine, listener, stop)

        thread = threading.Thread(target=lambda: asyncio.run(main()))  # as the engine's process
        thread.start()
        assert running.wait(10), "the server's loop did not start within 10 s"
        client = Client(home, "default")
        try:
            yield client
        finally:
            client.close()
            engine.loop.call_soon_threadsafe(stop.set)
            thread.join(10)
            assert not thread.is_alive(), "the server did not stop within 10 s"


def raw(client: Client, request: bytes) -> bytes:
    """The answer to literal bytes, up to the end of the connection."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(client.paths.api_socket))
        connection.sendall(request)
        answer = b""
        while data := connection.recv(65536):
            answer += data
        return answer


def test_ping_has_the_headers_that_clients_negotiate_by(client: Client) -> None:
    reply = client.request("GET", "/_ping")
    assert reply.body == b"OK"
    assert reply.headers["api-version"] == "1.50"
    assert reply.headers["ostype"] == "linux"
    head = raw(client, b"HEAD /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b"Builder-Version: 1" in head or b"builder-version: 1" in head.lower()
    assert not head.endswith(b"OK")


def test_several_requests_share_a_connection(client: Client) -> None:
    for _ in range(3):
        assert client.request("GET", "/containers/json").json()[0]["Names"] == ["/one"]


def test_errors_carry_status_message_and_hint(client: Client) -> None:
    with pytest.raises(EngineError, match="name taken is in use") as error:
        client.request("POST", "/containers/create", query={"name": "taken"}, body={"Image": "x"})
    assert (error.value.http_status, error.value.hint) == (409, "choose another")
    assert client.request("GET", "/_ping").status == 200


def test_a_field_that_is_not_implemented_is_501_by_name(client: Client) -> None:
    body = {"Image": "x", "HostConfig": {"Links": ["a:b"]}}
    with pytest.raises(EngineError, match=r"HostConfig\.Links") as error:
        client.request("POST", "/containers/create", body=body)
    assert error.value.http_status == 501


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nonsense", 404),
        ("GET", "/containers/nobody/json", 404),
        ("GET", "/swarm", 503),
        ("GET", "/services/x", 503),
        ("POST", "/build", 501),
        ("GET", "/networks", 501),
    ],
)
def test_what_is_not_there_answers_politely(
    client: Client, method: str, path: str, status: int
) -> None:
    with pytest.raises(EngineError) as error:
        client.request(method, path)
    assert error.value.http_status == status


def test_inspect_shows_every_field_with_its_default(client: Client) -> None:
    facts = client.request("GET", "/containers/one/json").json()
    assert facts["State"]["Status"] == "running"
    assert facts["State"]["FinishedAt"] == "0001-01-01T00:00:00Z"
    assert facts["HostConfig"]["NetworkMode"] == "default"
    assert facts["Name"] == "/one"


def test_wait_sends_its_headers_before_the_exit(client: Client, engine: SimpleNamespace) -> None:
    engine.emulation = SimpleNamespace(complaint=lambda _container, code: "" if code == 3 else "?")
    answer = client.stream("POST", "/containers/one/wait")  # returns only after the headers
    engine.loop.call_soon_threadsafe(
        lambda: engine.containers.exit.set_result(ExitStatus(3, "out of luck"))
    )
    assert b"".join(answer).strip() == (b'{"StatusCode": 3, "Error": {"Message": "out of luck"}}')


def test_an_attached_stream_goes_both_ways_and_half_closes(
    client: Client, engine: SimpleNamespace
) -> None:
    connection, early = client.hijack(
        "/containers/one/attach", query={"stream": 1, "stdin": 1, "stdout": 1, "stderr": 1}
    )
    with connection:
        connection.sendall(b"hello")
        connection.shutdown(socket.SHUT_WR)
        answer = early
        while data := connection.recv(65536):
            answer += data
    assert answer == b"\x01\0\0\0\0\0\0\x05hello\x02\0\0\0\0\0\0\x03bye"
    assert engine.containers.attachment.closed


def test_a_hijack_without_upgrade_is_answered_as_to_old_clients(client: Client) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(client.paths.api_socket))
        connection.sendall(
            b"POST /containers/one/attach?stream=1&stdin=1 HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


def test_logs_end_with_the_answer(client: Client) -> None:
    parts = client.stream("GET", "/containers/one/logs", query={"stdout": 1, "follow": 0})
    assert b"".join(parts) == b"\x01\0\0\0\0\0\0\x05line\n"


def test_logs_of_a_machine_that_is_paused_are_an_error_and_no_empty_answer(
    client: Client, engine: SimpleNamespace
) -> None:
    engine.containers.paused = True
    with pytest.raises(EngineError, match="the machine is paused"):
        client.stream("GET", "/containers/one/logs", query={"stdout": 1, "follow": 1})


def test_a_json_stream_that_fails_says_so_in_its_last_line(client: Client) -> None:
    lines = client.lines("GET", "/events")
    assert next(lines)["Action"] == "start"
    with pytest.raises(EngineError, match="no more"):
        next(lines)


def test_a_handler_is_cancelled_when_its_client_leaves(
    client: Client, engine: SimpleNamespace
) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(client.paths.api_socket))
        connection.sendall(b"POST /containers/one/stop HTTP/1.1\r\nHost: x\r\n\r\n")
    assert engine.containers.cancelled.wait(10), "the handler was not cancelled within 10 s"


def test_garbage_and_huge_bodies_do_not_disturb_others(client: Client) -> None:
    assert raw(client, b"\x16\x03\x01garbage\r\n\r\n") == b""
    huge = b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n"
    assert b"400" in raw(client, huge + b" " * 9_000_000).split(b"\r\n")[0]
    assert client.request("GET", "/_ping").status == 200


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """POST /count answers with the length of each piece, while it arrives; "stop" is refused."""

    async def count(_engine: Any, request: Request) -> Response:
        pieces = blocking(request.incoming())

        def lengths() -> Iterator[bytes]:
            for piece in pieces:
                if piece == b"stop":
                    raise Conflict("enough")
                yield json.dumps({"length": len(piece)}).encode()

        async def messages() -> AsyncIterator[dict[str, Any]]:
            async for line in from_thread(lengths()):
                yield json.loads(line)

        return json_lines(messages())

    routes = Routes()
    routes.add("POST", "/count", Streamed(count))
    routes.add("GET", "/known", known_length)
    monkeypatch.setattr("wherry.api.server.ROUTES", routes)


async def known_length(_engine: Any, _request: Request) -> Response:
    return Response(200, from_thread(iter([b"ab", b"cd"])), length=4)


@pytest.mark.usefixtures("counting")
def test_a_body_is_read_and_answered_at_the_same_time(client: Client) -> None:
    sent: queue.Queue[bytes | None] = queue.Queue()
    sent.put(b"12345")
    answers = client.upload("/count", iter(sent.get, None))
    assert next(answers) == {"length": 5}
    sent.put(b"123")
    assert next(answers) == {"length": 3}
    sent.put(None)
    assert list(answers) == []


@pytest.mark.usefixtures("counting")
def test_a_streamed_body_has_no_limit(client: Client) -> None:
    pieces = [bytes(1 << 20)] * 20
    assert sum(line["length"] for line in client.upload("/count", pieces)) == 20 << 20


@pytest.mark.usefixtures("counting")
def test_a_refusal_in_mid_body_reaches_the_client(client: Client) -> None:
    endless = itertools.chain([b"1", b"stop"], itertools.repeat(bytes(1 << 16)))
    with pytest.raises(EngineError, match="enough"):
        list(client.upload("/count", endless))


@pytest.mark.usefixtures("counting")
def test_what_the_source_of_an_upload_raises_is_raised(client: Client) -> None:
    def failing() -> Iterator[bytes]:
        yield b"1"
        raise InvalidInput("cannot read it")

    with pytest.raises(InvalidInput, match="cannot read it"):
        list(client.upload("/count", failing()))


@pytest.mark.usefixtures("counting")
def test_a_client_that_leaves_in_mid_upload_disturbs_nobody(client: Client) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(client.paths.api_socket))
        connection.sendall(b"POST /count HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n12")
    assert list(client.upload("/count", [b"12"])) == [{"length": 2}]


@pytest.mark.usefixtures("counting")
def test_an_answer_of_known_length_is_not_chunked(client: Client) -> None:
    answer = raw(client, b"GET /known HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b"content-length: 4" in answer.lower()
    assert answer.endswith(b"\r\n\r\nabcd")


def test_a_bug_is_an_answer_too(client: Client, engine: SimpleNamespace) -> None:
    engine.containers.list = None
    with pytest.raises(EngineError, match="internal error: TypeError") as error:
        client.request("GET", "/containers/json")
    assert error.value.http_status == 500
