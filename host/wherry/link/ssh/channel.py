"""The wire inside an SSH channel, over a virtio-serial port that SSH connections begin on.

paramiko is blocking and has threads of its own; here two more lead its channel to the event loop.
The rule: the host's key is the one that we were told over the agent's port, else nothing is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.errors import LinkError
from wherry.link.transport import WRITE_BUFFER, Connect, Receiver, Transport
from wherry_guest.wire import Buffer

if TYPE_CHECKING:
    import paramiko

USER = "root"
BEGIN = bytes.fromhex("8d1f5e0bb4a74c2f93e6c05a71d8fe42")
BEGUN = bytes.fromhex("c7602a9e1bd348f5a80df46b9537ce18")
NONCE_BYTES = 16
"""How an SSH connection begins on the port: `wherry_guest.agent.sshport`, docs/wire.md."""

_BEGIN_PATIENCE = 3.0
_PATIENCE = 20.0
"""Seconds for the port's answer, which is the agent's; and for each step of SSH."""

_WINDOW = 4 << 20
_PACKET = 1 << 15
_READ_BYTES = 256 * 1024


def ssh_channel(path: Path, key: Path, host_key: str) -> Connect:
    """A `connect` to the agent by the SSH server behind the virtio-serial chardev at `path`.

    Args:
        key: the private key that logs in.
        host_key: what the server must have, as `ssh-ed25519 BASE64`.

    Raises (when called): OSError or LinkError.
    """

    async def connect() -> Transport:
        channel = await asyncio.to_thread(_open, path, key, host_key)
        return ChannelTransport(channel, asyncio.get_running_loop())

    return connect


class ChannelTransport:
    """A `Transport` over an open channel, whose connection it owns."""

    def __init__(self, channel: paramiko.Channel, loop: asyncio.AbstractEventLoop) -> None:
        self._channel = channel
        self._loop = loop
        self._receiver: Receiver | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._congested = False

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        for work in (self._read, self._write):
            threading.Thread(target=work, name="link over ssh", daemon=True).start()

    def write(self, pieces: Iterable[Buffer]) -> bool:
        data = b"".join(pieces)
        with self._changed:
            self._waiting.append(data)
            self._size += len(data)
            self._congested = self._size > WRITE_BUFFER
            self._changed.notify()
            return not self._congested

    def close(self) -> None:
        if self._closed:
            return
        with self._changed:
            self._closed = True
            self._changed.notify()
        # It waits for paramiko's thread, which looks up ten times a second.
        threading.Thread(target=_end, args=(self._channel,), name="ssh end", daemon=True).start()
        if self._receiver is not None:
            self._loop.call_soon(self._receiver.connection_lost, None)

    def _read(self) -> None:
        receiver = self._receiver
        assert receiver is not None
        with contextlib.suppress(*_ended()):
            while data := self._channel.recv(_READ_BYTES):
                self._tell(self._received, data)
        self._tell(self._lost)

    def _write(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                data = b"".join(self._waiting)
                self._waiting.clear()
            try:
                self._channel.sendall(data)
            except _ended():
                self._tell(self._lost)
                return
            with self._changed:
                self._size -= len(data)
                roomy = self._congested and self._size <= WRITE_BUFFER
                self._congested = self._congested and not roomy
            if roomy:
                self._tell(self._has_room)

    def _tell(self, function: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(function, *arguments)

    def _received(self, data: bytes) -> None:
        if not self._closed and self._receiver is not None:
            self._receiver.data_received(data)

    def _has_room(self) -> None:
        if not self._closed and self._receiver is not None:
            self._receiver.writable()

    def _lost(self) -> None:
        if not self._closed:
            self.close()


def _open(path: Path, key: Path, host_key: str) -> paramiko.Channel:
    import paramiko

    connection = begin(path)
    try:
        transport = paramiko.Transport(connection)
    except BaseException:
        connection.close()
        raise
    try:
        transport.banner_timeout = transport.auth_timeout = _PATIENCE
        transport.start_client(timeout=_PATIENCE)
        offered = transport.get_remote_server_key()
        if f"{offered.get_name()} {offered.get_base64()}" != host_key:
            raise LinkError("the machine's SSH server has not the key that the machine told")
        transport.auth_publickey(USER, paramiko.Ed25519Key.from_private_key_file(os.fspath(key)))
        channel = transport.open_session(_WINDOW, _PACKET, timeout=_PATIENCE)
        channel.exec_command("wherry")  # the server's own command is run, whatever is asked for
    except paramiko.SSHException as error:
        transport.close()
        raise LinkError(f"SSH to the machine: {error}") from error
    except EOFError as error:
        transport.close()
        raise LinkError("SSH to the machine: the connection was closed") from error
    except BaseException:
        transport.close()
        raise
    return channel


def begin(path: Path) -> socket.socket:
    """A connection to the port on which SSH begins: what the server sends comes next.

    Raises:
        OSError: nobody is there. LinkError: the guest does not answer.
    """
    if sys.platform == "win32":
        raise OSError("there are no Unix sockets on Windows")
    nonce = secrets.token_bytes(NONCE_BYTES)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_BEGIN_PATIENCE)
        connection.connect(os.fspath(path))
        connection.sendall(BEGIN + nonce)
        _skip_to(connection, BEGUN + nonce)
    except TimeoutError as error:
        connection.close()
        raise LinkError("the guest does not answer on its SSH port") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _skip_to(connection: socket.socket, mark: bytes) -> None:
    """Read up to the end of `mark` and not a byte more."""
    tail = b""
    while True:
        seen = connection.recv(_READ_BYTES, socket.MSG_PEEK)
        if not seen:
            raise LinkError("the guest's SSH port was closed")
        at = (tail + seen).find(mark)
        if at >= 0:
            connection.recv(at + len(mark) - len(tail))
            return
        tail = (tail + connection.recv(len(seen)))[1 - len(mark) :]


def _ended() -> tuple[type[Exception], ...]:
    """What paramiko raises when the connection is gone."""
    import paramiko

    return OSError, EOFError, paramiko.SSHException


def _end(channel: paramiko.Channel) -> None:
    channel.get_transport().close()
