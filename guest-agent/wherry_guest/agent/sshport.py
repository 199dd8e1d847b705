"""SSH connections over a virtio-serial port, which knows no connections.

The rule: the host begins each one with BEGIN and 16 random bytes; whatever connection there was is
over then, and the answer is BEGUN with the same bytes. What the host reads before that answer is an
earlier connection's; so neither what a reconnect loses nor what it leaves behind does harm. Both
words are random bytes that nothing else contains.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from wherry_guest.agent.outlet import Outlet
from wherry_guest.agent.sshsession import Session
from wherry_guest.loop import Loop, Timer

_os: Final[Any] = os

BEGIN: Final = bytes.fromhex("8d1f5e0bb4a74c2f93e6c05a71d8fe42")
BEGUN: Final = bytes.fromhex("c7602a9e1bd348f5a80df46b9537ce18")
NONCE_BYTES: Final = 16

_READ_BYTES: Final = 4096
"""What a read of such a port gives at most (Linux, drivers/char/virtio_console.c)."""

_LOOK_FIRST: Final = 0.002
_LOOK_LIMIT: Final = 0.1
"""Seconds between two looks for a host: without one the port reads as ended."""


class Beginnings:
    """Finds BEGIN in what comes, however it is cut. Sans-I/O."""

    def __init__(self) -> None:
        self._tail = b""

    def split(self, data: bytes) -> list[bytes]:
        """The data around all beginnings: [old, nonce, new, nonce, newer, …]."""
        found: list[bytes] = []
        text = self._tail + data
        size = len(BEGIN) + NONCE_BYTES
        after = len(self._tail)  # what is before that was given out already
        floor = 0
        while (at := text.find(BEGIN, floor)) >= 0 and at + size <= len(text):
            found += [text[after : max(at, after)], text[at + len(BEGIN) : at + size]]
            after = floor = at + size
        self._tail = text[max(floor, len(text) - size + 1) :]
        return [*found, text[after:]]


class SshPort:
    """Serves SSH connections, one at a time, over a port.

    Args:
        open_port: gives the port's descriptor; raises OSError while there is none.
        open_session: starts a server. Raises OSError.
    """

    def __init__(
        self,
        loop: Loop,
        open_port: Callable[[], int],
        open_session: Callable[[], Session],
    ) -> None:
        self._loop = loop
        self._open_port = open_port
        self._open_session = open_session
        self._fd = -1
        self._beginnings = Beginnings()
        self._session: Session | None = None
        self._outlet: Outlet | None = None
        self._look_after = _LOOK_FIRST
        self._timer: Timer | None = None
        self._look()

    def close(self) -> None:
        self._end_session()
        if self._timer is not None:
            self._timer.cancel()
        if self._fd >= 0:
            self._leave()
            os.close(self._fd)
            self._fd = -1

    def _look(self) -> None:
        """Is a host there?"""
        if self._fd < 0:
            try:
                self._fd = self._open_port()
            except OSError:
                self._look_later()
                return
            _os.set_blocking(self._fd, False)
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            data = None
        except OSError:
            data = b""
        if data == b"":
            self._look_later()
            return
        self._look_after = _LOOK_FIRST
        self._outlet = Outlet(self._loop, self._fd, self._port_has_room, self._host_gone)
        self._loop.add_reader(self._fd, self._readable)
        if data:
            self._take(data)

    def _look_later(self) -> None:
        self._timer = self._loop.call_later(self._look_after, self._look)
        self._look_after = min(2 * self._look_after, _LOOK_LIMIT)

    def _leave(self) -> None:
        self._loop.remove_reader(self._fd)
        if self._outlet is not None:
            self._outlet.close()
            self._outlet = None

    def _host_gone(self) -> None:
        if self._outlet is not None:
            self._end_session()
            self._leave()
            self._look_later()

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._take(data)
        else:
            self._host_gone()

    def _take(self, data: bytes) -> None:
        old, *rest = self._beginnings.split(data)
        self._feed(old)
        for nonce, new in zip(rest[::2], rest[1::2], strict=True):
            self._begin(nonce)
            self._feed(new)

    def _feed(self, data: bytes) -> None:
        if data and self._session is not None and not self._session.feed(data):
            self._loop.remove_reader(self._fd)

    def _begin(self, nonce: bytes) -> None:
        self._end_session()
        session = self._session = self._open_session()
        assert self._outlet is not None
        self._outlet.write(BEGUN + nonce)
        session.on_output = self._outlet.write
        session.on_room = self._session_has_room
        session.on_end = self._session_over

    def _session_has_room(self) -> None:
        if self._outlet is not None:
            self._loop.add_reader(self._fd, self._readable)

    def _port_has_room(self) -> None:
        if self._session is not None:
            self._session.resume()

    def _session_over(self) -> None:
        """The server has ended by itself. The port is closed for a moment, which the host hears."""
        self._session = None
        if self._fd >= 0:
            self._leave()
            os.close(self._fd)
            self._fd = -1
            self._look_later()

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
            self._session_has_room()
