"""A network namespace that is made ahead of need: a fifth of what the kernel does for a container.

Rules: there is at most one; it is made by a process of the cradle's that ends at once and holds
nothing else, and was never anybody's. It is used once, for a container that wants a new one. It is
made after a container has ended or has been running for a moment, never before the first one: what
machines of one template would share is not made before they differ.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final

from wherry_guest.core.flatten import spare_network

if TYPE_CHECKING:
    from wherry_guest.core.births import Births

_MOST_WORDS: Final = 64
_socket: Final[Any] = socket


class Spare:
    """The namespace that waits, if there is one."""

    def __init__(self, births: Births) -> None:
        self._births = births
        self._program = spare_network(births.architecture) if births.architecture else b""
        self._network: int | None = None
        self._status: socket.socket | None = None
        self._maker = 0
        self._failed = False

    @property
    def ready(self) -> bool:
        return self._network is not None

    @property
    def wanted(self) -> bool:
        """Whether `make` would do something, and has not failed the last time."""
        idle = self._network is None and self._status is None
        return idle and self._births.alive and not self._failed

    def take(self) -> int:
        """The descriptor, which is the caller's from now on."""
        network, self._network = self._network, None
        assert network is not None, "nobody takes one that is not there"
        return network

    def make(self) -> None:
        """Have one made, unless there is one, or nobody to make it."""
        if self._network is not None or self._status is not None or not self._births.alive:
            return
        ours, theirs = socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        ours.setblocking(False)

        def born(pid: int) -> None:
            self._maker = pid

        with theirs:
            fds = [theirs.fileno()]
            if self._births.ask(self._program, fds, born, lambda certain: self._made()):
                self._status = ours
            else:
                ours.close()

    def reaped(self, pid: int) -> bool:
        """Whether the process was to make one: then it is here, or could not be made."""
        if not self._maker or pid != self._maker:
            return False
        self._made()
        return True

    def _made(self) -> None:
        status, self._status, self._maker = self._status, None, 0
        assert status is not None, "it was asked for"
        self._failed = True
        with status:
            try:
                _, fds, _, _ = _socket.recv_fds(status, _MOST_WORDS, 1, _socket.MSG_CMSG_CLOEXEC)
            except OSError:
                return
        if fds:
            self._network, self._failed = fds[0], False
