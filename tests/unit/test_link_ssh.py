"""SSH as a transport: how its connections begin on a port, its keys, and the wire in a channel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_link_channel import DEADLINE, Guest, linked, read_all, run, write_all

from wherry.errors import LinkError, StorageError
from wherry.link.ssh import channel as channel_module
from wherry.link.ssh.channel import begin, ssh_channel
from wherry.link.ssh.keys import user_key, write_known_hosts
from wherry_guest.agent import sshport
from wherry_guest.agent.sshport import BEGIN, BEGUN, NONCE_BYTES, Beginnings, SshPort
from wherry_guest.channel import Ends
from wherry_guest.loop import Loop

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets and pipes")

NONCE = bytes(range(NONCE_BYTES))


def test_both_ends_mean_the_same_words() -> None:
    ours = (channel_module.BEGIN, channel_module.BEGUN, channel_module.NONCE_BYTES)
    assert ours == (BEGIN, BEGUN, NONCE_BYTES)


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.just(BEGIN[:7]),
            st.just(BEGIN + NONCE),
            st.just(BEGIN + BEGIN[:NONCE_BYTES]),
        ),
        max_size=8,
    ),
    st.lists(st.integers(1, 50), min_size=1, max_size=20),
)
def test_beginnings_are_found_however_the_bytes_are_cut(
    parts: list[bytes], cuts: list[int]
) -> None:
    """What is cut in the middle of a beginning goes to the connection that it ends, besides."""
    text = b"".join(parts)
    whole = Beginnings().split(text)
    beginnings, pieces, at = Beginnings(), [b""], 0
    for size in cuts * (len(text) + 1):
        if at >= len(text):
            break
        first, *rest = beginnings.split(text[at : at + size])
        pieces[-1] += first
        pieces += rest
        at += size
    assert pieces[1::2] == whole[1::2]
    assert len(pieces) == len(whole)
    for number, (mine, theirs) in enumerate(zip(pieces[::2], whole[::2], strict=True)):
        last = number == len(whole) // 2
        assert mine == theirs or (not last and mine.startswith(theirs))
        assert BEGIN.startswith(mine[len(theirs) :][: len(BEGIN)])


class FakeSession:
    """A server that keeps what it is told."""

    def __init__(self) -> None:
        self.heard = b""
        self.closed = False
        self.on_output = lambda data: True
        self.on_room = lambda: None
        self.on_end = lambda: None

    def feed(self, data: bytes) -> bool:
        self.heard += data
        return True

    def resume(self) -> None:
        return

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def until(loop: Loop, condition: object) -> None:
    """Run the loop until `condition()`; for at most the deadline."""
    assert callable(condition)
    timeout = loop.call_later(DEADLINE, loop.stop)

    def look() -> None:
        if condition():
            loop.stop()
        else:
            loop.call_later(0.001, look)

    look()
    loop.run()
    timeout.cancel()
    assert condition()


def test_a_connection_on_the_port_ends_the_one_before(loop: Loop) -> None:
    sessions: list[FakeSession] = []
    host, guest = socket.socketpair()
    opened: list[int] = []

    def open_port() -> int:
        opened.append(1)
        return guest.dup().detach()

    def open_session() -> FakeSession:
        sessions.append(FakeSession())
        return sessions[-1]

    port = SshPort(loop, open_port, open_session)  # type: ignore[arg-type]  # a fake
    host.sendall(b"left over" + BEGIN + NONCE + b"first" + BEGIN + bytes(16) + b"second")
    until(loop, lambda: len(sessions) == 2 and sessions[1].heard == b"second")
    assert (sessions[0].heard, sessions[0].closed, sessions[1].closed) == (b"first", True, False)
    assert host.recv(100) == BEGUN + NONCE + BEGUN + bytes(16)
    sessions[1].on_output(b"SSH-2.0-x")
    assert host.recv(100) == b"SSH-2.0-x"
    sessions[1].on_end()
    until(loop, lambda: len(opened) == 2)  # closed for a moment, so that the host hears
    port.close()
    host.close()
    guest.close()


class PortServer:
    """The chardev's socket: what an earlier connection left comes first, then the answer."""

    def __init__(self, path: Path, stale: bytes, after: bytes, *, answers: bool = True) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()

        def serve() -> None:
            connection, _ = self._listener.accept()
            with connection:
                said = connection.recv(100)
                connection.sendall(stale)
                if answers:
                    connection.sendall(BEGUN + said[len(BEGIN) :] + after)
                connection.recv(100)

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._thread.join(DEADLINE)
        self._listener.close()


@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_what_an_earlier_connection_left_is_skipped_and_not_a_byte_more(
    tmp_path: Path, size: int
) -> None:
    stale = random.Random(size).randbytes(size) + BEGUN + bytes(16)
    server = PortServer(tmp_path / "p", stale, b"SSH-2.0-dropbear\r\n")
    with begin(tmp_path / "p") as connection:
        assert connection.recv(100) == b"SSH-2.0-dropbear\r\n"
    server.close()


def test_a_guest_that_does_not_answer_on_the_port_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "_BEGIN_PATIENCE", 0.05)
    server = PortServer(tmp_path / "p", b"noise", b"", answers=False)
    with pytest.raises(LinkError, match="does not answer on its SSH port"):
        begin(tmp_path / "p")
    server.close()


def test_the_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "ssh" / "id"
    public = user_key(file)
    assert user_key(file) == public
    assert file.stat().st_mode & 0o777 == 0o600
    key = paramiko.Ed25519Key.from_private_key_file(str(file))
    assert f"{key.get_name()} {key.get_base64()}" == public
    file.write_text("no key")
    with pytest.raises(StorageError, match="is damaged"):
        user_key(file)


def test_known_hosts_name_the_one_key_of_now(tmp_path: Path) -> None:
    file = tmp_path / "known"
    for key in ("ssh-ed25519 A", "ssh-ed25519 B"):
        write_known_hosts(file, "wherry-x", key)
        assert file.read_text() == f"wherry-x {key}\n"


class SshServer:
    """An SSH server behind a port, whose command's ends are the guest's line."""

    def __init__(self, path: Path, client_key: str, guest: Guest) -> None:
        self.key = paramiko.Ed25519Key.from_private_key_file(str(_made_key(path)))
        self._client_key = client_key
        self._guest = guest
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def host_key(self) -> str:
        return f"{self.key.get_name()} {self.key.get_base64()}"

    def cut(self) -> None:
        self.connections[-1].shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            said = connection.recv(100)
            connection.sendall(BEGUN + said[len(BEGIN) :])
            transport = paramiko.Transport(connection)
            transport.add_server_key(self.key)
            transport.start_server(server=_Session(self._client_key))
            if (channel := transport.accept(DEADLINE)) is not None:
                self._lead(channel)

    def _lead(self, channel: paramiko.Channel) -> None:
        (read_in, write_in), (read_out, write_out) = os.pipe(), os.pipe()
        self._guest.do(lambda: self._guest.channel.move(Ends(read_in, write_out)))

        def inwards() -> None:
            with contextlib.suppress(OSError):
                while data := channel.recv(65536):
                    os.write(write_in, data)
            os.close(write_in)

        threading.Thread(target=inwards, daemon=True).start()
        with contextlib.suppress(OSError):
            while data := os.read(read_out, 65536):
                channel.sendall(data)
        os.close(read_out)
        channel.close()


class _Session(paramiko.ServerInterface):
    def __init__(self, client_key: str) -> None:
        self._client_key = client_key

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        known = f"{key.get_name()} {key.get_base64()}" == self._client_key
        good = known and username == "root"
        return paramiko.common.AUTH_SUCCESSFUL if good else paramiko.common.AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        return True


def _made_key(path: Path) -> Path:
    file = path.parent / "host" / "key"
    user_key(file)
    return file


def test_the_link_goes_on_in_an_ssh_channel_and_over_the_next_one(tmp_path: Path) -> None:
    async def test() -> None:
        async with linked() as (link, guest, port):
            key = tmp_path / "id"
            server = SshServer(tmp_path / "p", user_key(key), guest)
            link.redirect(ssh_channel(tmp_path / "p", key, server.host_key))
            data = random.Random(1).randbytes(1_000_000)
            for _ in range(2):
                stream = link.open_stream()
                await link.call("twice", {"stream": stream.id})
                moving = asyncio.gather(read_all(stream), write_all(stream, data))
                server.cut()
                back, _ = await moving
                assert back == data
            assert len(server.connections) >= 2
            assert guest.resets == []
            link.redirect(port.connect)
            assert await link.call("echo", {"n": 1}) == {"n": 1}
            server.close()

    run(test)


@pytest.mark.parametrize(
    ("wrong", "complaint"), [("host", "not the key that"), ("user", "Authentication failed")]
)
def test_neither_end_believes_a_stranger(tmp_path: Path, wrong: str, complaint: str) -> None:
    async def test() -> None:
        async with linked() as (_, guest, _):
            key, other = tmp_path / "id", tmp_path / "other"
            allowed = user_key(other) if wrong == "user" else user_key(key)
            user_key(key)
            server = SshServer(tmp_path / "p", allowed, guest)
            host_key = user_key(other) if wrong == "host" else server.host_key
            with pytest.raises(LinkError, match=complaint):
                await ssh_channel(tmp_path / "p", key, host_key)()
            server.close()

    run(test)


def test_the_words_are_not_printable() -> None:
    """So no greeting of an SSH server or client has them."""
    for word in (sshport.BEGIN, sshport.BEGUN):
        assert any(byte > 127 for byte in word)
