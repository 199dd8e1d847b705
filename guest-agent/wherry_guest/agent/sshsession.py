"""One connection to the SSH server: a process whose standard input and output is our socket.

`Session` moves bytes; who is at the other end is a stream of the link (`serve_stream`) or a
virtio-serial port (`wherry_guest.agent.sshport`). The rule: a session is over when either side is;
then the process is killed if it does not end by itself.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from wherry_guest.agent.outlet import Outlet
from wherry_guest.channel import GuestStream
from wherry_guest.loop import Loop

_os: Final[Any] = os
_signal: Final[Any] = signal

READ_BYTES: Final = 64 * 1024
PATIENCE: Final = 5.0
"""Seconds that a server gets to end once its connection is gone."""


class Session:
    """Attributes:
    on_output: gets what the server sends; returns False when it wants no more until `resume`.
    on_room: called when `feed` may go on, after it returned False.
    on_end: called once, when the session is over and `close` was not called.
    """

    def __init__(self, loop: Loop, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.on_output: Callable[[bytes], bool] = lambda data: True
        self.on_room: Callable[[], None] = lambda: None
        self.on_end: Callable[[], None] = lambda: None
        self._loop = loop
        self._pidfd: int = _os.pidfd_open(pid)
        self._fd = connection.detach()
        self._outlet = Outlet(loop, self._fd, lambda: self.on_room(), self._over)
        self._open = True
        self._timer = loop.call_later(0, lambda: None)
        loop.add_reader(self._pidfd, self._exited)
        loop.add_reader(self._fd, self._readable)

    def feed(self, data: bytes) -> bool:
        """Give the server what its client says; False: wait for `on_room`."""
        return self._outlet.write(data)

    def resume(self) -> None:
        if self._open:
            self._loop.add_reader(self._fd, self._readable)

    def close(self) -> None:
        """End it."""
        if not self._open:
            return
        self._open = False
        self._outlet.close()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._timer = self._loop.call_later(PATIENCE, self._kill)

    def _over(self) -> None:
        if self._open:
            self.close()
            self.on_end()

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._over()
        elif not self.on_output(data) and self._open:
            self._loop.remove_reader(self._fd)

    def _kill(self) -> None:
        _signal.pidfd_send_signal(self._pidfd, _signal.SIGKILL)

    def _exited(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        os.waitpid(self.pid, 0)


def spawn(
    loop: Loop,
    argv: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
) -> Session:
    """Start a server on one end of a socket pair; its words are appended to `log`.

    Raises:
        OSError: it could not be started.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions = [
            (_os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
            (_os.POSIX_SPAWN_DUP2, theirs.fileno(), 1),
            (_os.POSIX_SPAWN_OPEN, 2, str(log), append, 0o600),
        ]
        try:
            pid = _os.posix_spawn(
                argv[0], list(argv), environment, file_actions=actions, setsigdef=[_signal.SIGPIPE]
            )
        except OSError:
            ours.close()
            raise
    ours.setblocking(False)
    return Session(loop, pid, ours)


def serve_stream(session: Session, stream: GuestStream) -> None:
    """Connect a session with a stream, until one of them ends."""

    def take(data: bytes) -> None:
        if not session.feed(data):
            stream.pause()

    def host_ended() -> None:
        session.close()
        stream.end()

    stream.on_data(take)
    session.on_room = stream.resume
    session.on_output = stream.write
    stream.on_writable(session.resume)
    stream.on_end(host_ended)
    stream.on_reset(lambda reason: session.close())
    session.on_end = stream.end
