"""The listener that systemd or launchd hands over, and what its clients hear of a broken engine."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry.engine.activation import from_launchd, from_systemd, turn_away
from wherry.errors import EngineUnreachable, InvalidInput
from wherry.osutil import listen_unix

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets")


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wh-") as name:
        yield Path(name)


@pytest.fixture
def listener(directory: Path) -> Iterator[socket.socket]:
    with listen_unix(directory / "api.sock") as it:
        yield it


def handed_over(listener: socket.socket) -> int:
    """A descriptor of the listener, as a process finds it after exec."""
    descriptor = os.dup(listener.fileno())
    os.set_inheritable(descriptor, True)
    return descriptor


def activation(fds: str = "1", pid: int | None = None) -> dict[str, str]:
    names = {"LISTEN_PID": str(pid or os.getpid()), "LISTEN_FDS": fds, "LISTEN_FDNAMES": "api"}
    return {**names, "HOME": "/h"}


def test_systemds_socket_is_taken_and_children_do_not_get_it(listener: socket.socket) -> None:
    environ = activation()
    descriptor = handed_over(listener)
    with from_systemd(environ, first=descriptor) or listener as taken:
        assert taken.fileno() == descriptor
        assert taken.getsockname() == listener.getsockname()
        assert not os.get_inheritable(descriptor)
    assert environ == {"HOME": "/h"}


def test_variables_for_another_process_mean_nothing(listener: socket.socket) -> None:
    environ = activation(pid=1)
    assert from_systemd(environ, first=listener.fileno()) is None
    assert from_systemd({}) is None
    assert environ == {"HOME": "/h"}


@pytest.mark.parametrize("fds", ["0", "2", "many"])
def test_another_number_of_sockets_is_refused(fds: str) -> None:
    with pytest.raises(EngineUnreachable, match=f"LISTEN_FDS is '{fds}'"):
        from_systemd(activation(fds))


def test_what_is_no_listening_socket_is_refused(tmp_path: Path) -> None:
    file = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    with pytest.raises(EngineUnreachable, match="is not a socket"):
        from_systemd(activation(), first=file)
    os.close(file)
    ours, theirs = socket.socketpair()
    with ours, pytest.raises(EngineUnreachable, match="not a listening Unix socket"):
        from_systemd(activation(), first=theirs.detach())


def test_launchds_socket_is_taken_by_its_name(listener: socket.socket) -> None:
    asked: list[str] = []

    def activate(name: str) -> list[int]:
        asked.append(name)
        return [handed_over(listener)]

    with from_launchd(activate) or listener as taken:
        assert taken is not listener
    assert asked == ["Listener"]


def test_a_process_that_launchd_did_not_start_has_none(listener: socket.socket) -> None:
    def activate(_name: str) -> list[int]:
        raise OSError(3, "No such process")

    assert from_launchd(activate) is None
    with pytest.raises(EngineUnreachable, match="there are 2"):
        from_launchd(lambda _name: [3, 4])


def test_clients_that_wait_for_an_engine_that_cannot_start_hear_why(
    listener: socket.socket, directory: Path
) -> None:
    answers: list[bytes] = []

    def ask(client: socket.socket) -> None:
        with client:
            client.sendall(b"GET /_ping HTTP/1.1\r\nHost: engine\r\n\r\n")
            answers.append(b"".join(iter(lambda: client.recv(4096), b"")))

    askers = []
    for _ in range(2):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(20)
        client.connect(os.fspath(directory / "api.sock"))
        askers.append(threading.Thread(target=ask, args=(client,)))
        askers[-1].start()
    turn_away(listener, InvalidInput("config.yml is not YAML", hint="correct it"))
    for asker in askers:
        asker.join(20)
    assert len(answers) == 2
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"the engine cannot start: config.yml is not YAML" in answer
