"""The way to the guest by a vsock: the host kernel's own, or the Unix socket of a daemon.

Anybody on the host can connect to a guest's vsock, and another machine could have its number one
day: so both ends prove themselves with secrets (`Secrets`) that were told over the serial port.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import LinkError
from wherry.link.transport import Connect, Transport, over_socket

SECRET_BYTES = 32
_PATIENCE = 5.0
"""Seconds to connect and be answered; nobody there is told at once."""

_LINE_LIMIT = 64


@dataclass(frozen=True, slots=True)
class Secrets:
    """What the host says, and what the guest has to answer; both of SECRET_BYTES."""

    ours: bytes
    answer: bytes

    @classmethod
    def fresh(cls) -> Secrets:
        return cls(secrets.token_bytes(SECRET_BYTES), secrets.token_bytes(SECRET_BYTES))


def kernel_vsock(cid: int, port: int, known: Secrets) -> Connect:
    """A `connect` to `port` of the guest `cid`, by the host's kernel (vsock(7)); Linux only.

    Raises (when called): OSError or LinkError, nobody listens there, or not the one we know.
    """

    async def connect() -> socket.socket:
        if sys.platform != "linux":
            raise OSError("only Linux has vsocks")
        connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        return await _connected(connection, (cid, port))

    return _proved(connect, known)


def daemon_vsock(path: Path, port: int, known: Secrets) -> Connect:
    """A `connect` through the Unix socket of a daemon that is the guest's vsock device.

    The daemon's protocol is Firecracker's: `CONNECT PORT`, answered with `OK NUMBER`, then the
    bytes (firecracker, docs/vsock.md; vhost-device-vsock). Raises as `kernel_vsock`.
    """

    async def connect() -> socket.socket:
        if sys.platform == "win32":
            raise OSError("there are no Unix sockets on Windows")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        await _connected(connection, os.fspath(path))
        try:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(connection, f"CONNECT {port}\n".encode())
            line = b""
            while not line.endswith(b"\n") and len(line) < _LINE_LIMIT:
                line += await _exactly(connection, 1)
            if not line.startswith(b"OK "):
                raise LinkError(f"the vsock daemon answered {line!r}")
        except BaseException:
            connection.close()
            raise
        return connection

    return _proved(connect, known)


def _proved(open_socket: Callable[[], Awaitable[socket.socket]], known: Secrets) -> Connect:
    async def connect() -> Transport:
        try:
            async with asyncio.timeout(_PATIENCE):
                connection = await open_socket()
                try:
                    await asyncio.get_running_loop().sock_sendall(connection, known.ours)
                    answer = await _exactly(connection, SECRET_BYTES)
                    if not hmac.compare_digest(answer, known.answer):
                        raise LinkError("whoever listens on the vsock is not our machine")
                except BaseException:
                    connection.close()
                    raise
        except TimeoutError as error:
            raise LinkError(f"no answer on the vsock within {_PATIENCE:g} s") from error
        return await over_socket(connection)

    return connect


async def _connected(connection: socket.socket, address: object) -> socket.socket:
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, address)  # type: ignore[arg-type]  # typeshed knows no vsock addresses
    except BaseException:
        connection.close()
        raise
    return connection


async def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await asyncio.get_running_loop().sock_recv(connection, count - len(data))
        if not piece:
            raise LinkError("nobody listens on the vsock")
        data += piece
    return data
