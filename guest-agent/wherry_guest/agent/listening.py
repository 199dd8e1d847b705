"""`link.listen`: another way in for the engine than the virtio-serial port, which stays.

The rule: whoever comes has to prove that it is the engine which asked for it, with what that call
said over the port; only then does the link move (`Channel.move`). Nothing of this survives the
agent: an engine that finds another one asks again.
"""

from __future__ import annotations

import hmac
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from wherry_guest.agent.calls import Answer, Params
from wherry_guest.agent.children import run_program
from wherry_guest.agent.handover import MARK
from wherry_guest.agent.sshport import SshPort
from wherry_guest.agent.sshserver import SshServer, frames_command
from wherry_guest.channel import CallError, Channel, Ends
from wherry_guest.identity import package_parent
from wherry_guest.loop import Loop
from wherry_guest.port import open_agent_port

_socket: Final[Any] = socket

SECRET_BYTES: Final = 32
PATIENCE: Final = 5.0
"""Seconds for a caller to say its secret."""

PYTHON: Final = "/usr/bin/python3"
"""An agent that was executed does not know its own interpreter's path: PID 1 has no PATH."""

PIECE: Final = 28 * 1024
"""Bytes written to a vsock at a time. From 32 KiB on Linux scatters a packet over several buffers
(net/vmw_vsock, virtio_vsock_alloc_skb), and vhost-device-vsock 0.3 loses such packets, silently."""

_HOST_CID: Final = 2
_ANY_CID: Final = 0xFFFFFFFF
"""VMADDR_CID_HOST, VMADDR_CID_ANY: uapi/linux/vm_sockets.h."""

_DRIVER: Final = "vmw_vsock_virtio_transport"
_MODPROBE_TIMEOUT: Final = 20.0


class Listening:
    """What is listened to; one way at a time."""

    def __init__(self, loop: Loop, channel: Callable[[], Channel], ssh: SshServer) -> None:
        self._loop = loop
        self._channel = channel
        self._ssh = ssh
        self._close: list[Callable[[], None]] = []

    async def listen(self, params: Params) -> Answer:
        """`link.listen`."""
        kind = params.text("kind")
        if kind not in ("serial", "vsock", "ssh"):
            raise CallError("invalid", f"kind {kind!r} is not serial, vsock or ssh")
        self._stop()
        if kind == "vsock":
            await self._vsock(params)
        elif kind == "ssh":
            self._over_ssh(params)
        return None

    def _stop(self) -> None:
        for close in self._close:
            close()
        self._close.clear()

    async def _vsock(self, params: Params) -> None:
        secret, answer = _secret(params, "secret"), _secret(params, "answer")
        port = params.number("port")
        if not 0 < port < _ANY_CID:
            raise CallError("invalid", f"port {port} is not one of a vsock's")
        finished = await run_program(self._loop, ("modprobe", _DRIVER), _MODPROBE_TIMEOUT)
        if finished.code:
            raise CallError("failed", f"load the vsock driver: {finished.complaint}")
        listener = _socket.socket(_socket.AF_VSOCK, _socket.SOCK_STREAM)
        listener.bind((_ANY_CID, port))
        self._serve(listener, partial(self._greet, secret, answer))

    def _over_ssh(self, params: Params) -> None:
        name = params.identifier("port")
        path = self._ssh.directory / "frames.sock"
        path.unlink(missing_ok=True)
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        listener.bind(str(path))
        self._serve(listener, self._take_over)
        script = package_parent() / "wherry_guest" / "agent" / "handover.py"
        command = frames_command([PYTHON, "-IBS", str(script), str(path)])
        port = SshPort(self._loop, partial(open_agent_port, name), partial(self._ssh.open, command))
        self._close.append(port.close)

    def _serve(self, listener: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        listener.listen(4)
        listener.setblocking(False)

        def accept() -> None:
            try:
                connection, peer = listener.accept()
            except BlockingIOError:
                return
            if listener.family != _socket.AF_UNIX and peer[0] != _HOST_CID:
                connection.close()  # a container, or another machine
                return
            connection.setblocking(False)
            accepted(connection)

        def close() -> None:
            self._loop.remove_reader(listener.fileno())
            listener.close()

        self._loop.add_reader(listener.fileno(), accept)
        self._close.append(close)

    def _greet(self, secret: bytes, answer: bytes, connection: socket.socket) -> None:
        """A vsock has no owner: any user of the host can connect, so the caller proves itself."""
        said = b""
        fd = connection.fileno()

        def end() -> None:
            self._loop.remove_reader(fd)
            connection.close()

        def hear() -> None:
            nonlocal said
            try:
                data = connection.recv(SECRET_BYTES - len(said))
            except BlockingIOError:
                return
            except OSError:
                data = b""
            said += data
            if data and len(said) < SECRET_BYTES:
                return
            timer.cancel()
            if not hmac.compare_digest(said, secret):
                end()
                return
            self._loop.remove_reader(fd)
            connection.send(answer)
            line = connection.detach()
            self._channel().move(Ends(line, line, PIECE))

        timer = self._loop.call_later(PATIENCE, end)
        self._loop.add_reader(fd, hear)

    def _take_over(self, connection: socket.socket) -> None:
        """The SSH server's child gives us its two ends; it lives until ours close."""
        fd = connection.fileno()

        def hear() -> None:
            try:
                mark, ends, _, _ = _socket.recv_fds(connection, len(MARK), 2)
            except BlockingIOError:
                return
            except OSError:
                mark, ends = b"", []
            self._loop.remove_reader(fd)
            if mark != MARK or len(ends) != 2:
                for end in ends:
                    os.close(end)
                connection.close()
                return
            self._channel().move(Ends(*ends), connection.close)  # then the child ends

        self._loop.add_reader(fd, hear)


def _secret(params: Params, name: str) -> bytes:
    try:
        value = bytes.fromhex(params.text(name))
    except ValueError:
        value = b""
    if len(value) != SECRET_BYTES:
        raise CallError("invalid", f"{name} must be {SECRET_BYTES} bytes in hex")
    return value
