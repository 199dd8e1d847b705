"""The link moves: from the port to a vsock or pipes and back; who may be at the other end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from test_link_channel import DEADLINE, Guest, linked, read_all, run, until, write_all

from wherry.errors import LinkError
from wherry.link import Connect, Link, Transport, over_socket
from wherry.link import vsock as vsock_module
from wherry.link.vsock import Secrets, daemon_vsock, kernel_vsock
from wherry_guest import lines, wire
from wherry_guest.channel import Ends
from wherry_guest.loop import Loop
from wherry_guest.port import Port as GuestPort

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the guest's end needs os.readv")


def by_socket(guest: Guest, piece: int = 0) -> Connect:
    """A `connect` to another line, which the guest moves to as it is opened."""

    async def connect() -> Transport:
        ours, theirs = socket.socketpair()
        fd = theirs.detach()
        guest.do(lambda: guest.channel.move(Ends(fd, fd, piece)))
        return await over_socket(ours)

    return connect


def by_pipes(guest: Guest, over: list[str]) -> Connect:
    """The same over two pipes, as an SSH server gives them to its child."""

    async def connect() -> Transport:
        ours, theirs = socket.socketpair()
        (read_in, write_in), (read_out, write_out) = os.pipe(), os.pipe()
        for source, target in ((theirs.dup(), write_in), (read_out, theirs)):
            threading.Thread(target=_pump, args=(source, target), daemon=True).start()
        ends = Ends(read_in, write_out)
        guest.do(lambda: guest.channel.move(ends, lambda: over.append("over")))
        return await over_socket(ours)

    return connect


def _read(source: socket.socket | int) -> bytes:
    return source.recv(65536) if isinstance(source, socket.socket) else os.read(source, 65536)


def _pump(source: socket.socket | int, target: socket.socket | int) -> None:
    with contextlib.suppress(OSError):
        while data := _read(source):
            if isinstance(target, socket.socket):
                target.sendall(data)
            else:
                os.write(target, data)
    for end in (source, target):
        if isinstance(end, socket.socket):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        else:
            os.close(end)


async def carries(link: Link, guest: Guest) -> None:
    """A stream that began before a move is complete after it."""
    data = random.Random(1).randbytes(2_000_000)
    stream = link.open_stream()
    await link.call("twice", {"stream": stream.id})
    back, _ = await asyncio.gather(read_all(stream), write_all(stream, data))
    assert back == data


@asynccontextmanager
async def flowing(link: Link) -> AsyncIterator[None]:
    """What is under way inside the block is complete at its end."""
    data = random.Random(2).randbytes(3_000_000)
    stream = link.open_stream()
    await link.call("twice", {"stream": stream.id})
    moving = asyncio.gather(read_all(stream), write_all(stream, data))
    yield
    back, _ = await moving
    assert back == data


@pytest.mark.parametrize("piece", [0, 1000])
def test_the_session_goes_on_over_another_line_and_over_the_port_again(piece: int) -> None:
    async def test() -> None:
        async with linked() as (link, guest, port):
            restarts: list[object] = []
            link.on_peer_restart(restarts.append)
            async with flowing(link):
                link.redirect(by_socket(guest, piece))
            await carries(link, guest)
            async with flowing(link):
                link.redirect(port.connect)
            assert not restarts
            assert not guest.resets

    run(test)


def test_two_pipes_are_a_line_whose_end_is_told() -> None:
    async def test() -> None:
        async with linked() as (link, guest, port):
            over: list[str] = []
            link.redirect(by_pipes(guest, over))
            await until(lambda: not link.connected, "the move")
            await carries(link, guest)
            assert over == []
            link.redirect(port.connect)
            await until(lambda: over == ["over"], "the line's end")
            await carries(link, guest)

    run(test)


def test_a_host_that_speaks_at_the_port_gets_the_link_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other line is still open, but nobody is behind it any more."""
    monkeypatch.setattr(lines, "LOOK_SECONDS", 0.02)

    async def test() -> None:
        async with linked() as (link, guest, port):
            ours, theirs = socket.socketpair()
            fd = theirs.detach()
            guest.do(lambda: guest.channel.move(Ends(fd, fd)))
            await until(lambda: bool(ours.recv(1, socket.MSG_PEEK)), "the guest's first word")
            link.redirect(port.connect)
            assert await link.call("echo", {"n": 1}) == {"n": 1}
            ours.close()

    run(test)


def test_a_line_with_pieces_gets_no_bigger_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = os.writev

    def writev(fd: int, buffers: list[memoryview]) -> int:
        sizes.append(sum(map(len, buffers)))
        return real(fd, buffers)

    monkeypatch.setattr(os, "writev", writev)
    ours, theirs = socket.socketpair()
    loop = Loop()
    fd = theirs.detach()
    conn = wire.Connection(wire.Role.GUEST, {})
    port = GuestPort(loop, lambda: Ends(fd, fd, 5000), conn, lambda events: None)
    port.start()
    loop.call_later(0.01, loop.stop)
    loop.run()
    port.close()
    loop.close()
    ours.close()
    assert max(sizes) == 5000
    assert sum(sizes) > 65536


class Daemon:
    """A vsock daemon, and a guest that listens on one port."""

    def __init__(self, path: Path, port: int, heard: bytes, answer: bytes) -> None:
        self.said = b""
        self._heard, self._answer, self._port = heard, answer, port
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    if connection.recv(100) != b"CONNECT %d\n" % self._port:
                        continue  # nobody listens there: the daemon just closes
                    connection.sendall(b"OK 1073741824\n")
                    if connection.recv(32) != self._heard:
                        continue
                    connection.sendall(self._answer)
                    self.said = connection.recv(100)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(DEADLINE)


def test_a_vsock_is_used_when_both_ends_proved_themselves(tmp_path: Path) -> None:
    known = Secrets.fresh()
    daemon = Daemon(tmp_path / "v", 1024, known.ours, known.answer)

    async def test() -> None:
        transport = await daemon_vsock(tmp_path / "v", 1024, known)()
        transport.write([b"hello"])
        await until(lambda: daemon.said == b"hello", "what was written")
        transport.close()

    run(test)
    daemon.close()


@pytest.mark.parametrize(
    ("port", "heard", "answer", "complaint"),
    [
        (1024, None, bytes(32), "is not our machine"),
        (1024, bytes(32), bytes(32), "nobody listens"),
        (1, None, None, "nobody listens"),
    ],
)
def test_a_vsock_of_somebody_else_is_not_used(
    tmp_path: Path, port: int, heard: bytes | None, answer: bytes | None, complaint: str
) -> None:
    known = Secrets.fresh()
    daemon = Daemon(tmp_path / "v", port, heard or known.ours, answer or known.answer)

    async def test() -> None:
        with pytest.raises(LinkError, match=complaint):
            await daemon_vsock(tmp_path / "v", 1024, known)()

    run(test)
    daemon.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has vsocks")
def test_the_kernels_vsock_is_asked_for_the_guests_number(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Secrets.fresh()
    ours, theirs = socket.socketpair()
    asked: list[object] = []

    async def connected(connection: socket.socket, address: object) -> socket.socket:
        asked.append((connection.family, address))
        connection.close()
        ours.setblocking(False)
        return ours

    monkeypatch.setattr(vsock_module, "_connected", connected)
    theirs.sendall(known.answer)

    async def test() -> None:
        transport = await kernel_vsock(77, 1024, known)()
        transport.close()

    run(test)
    assert asked == [(socket.AF_VSOCK, (77, 1024))]
    assert theirs.recv(100) == known.ours
    theirs.close()
