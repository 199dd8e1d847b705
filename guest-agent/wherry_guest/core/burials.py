"""The end of a container's mounts, after the container's: in a process that does nothing else.

A process that ends as the last one of its mount namespace takes the mounts with it before anybody
hears of its end: the overlay's writable side is synced, the kernel waits for grace periods. Nobody
needs to wait for that but who starts the same container again. So PID 1 holds the namespace by a
descriptor, tells of the exit first, and then has the cradle make a process that holds it instead;
once the cradle has said its pid PID 1 lets it end, and the mounts end with it.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from wherry_guest.core.flatten import burial

if TYPE_CHECKING:
    from wherry_guest.core.cradle import Cradle
    from wherry_guest.core.nursery import Request

_socket: Final[Any] = socket


@dataclass(slots=True)
class Burial:
    """One container's mounts, on their way out.

    Args:
        leash: closed when the process may end; None: it was.
        waiting: starts of the same container.
    """

    key: str
    leash: socket.socket | None
    waiting: list[Request] = field(default_factory=list)

    def let_go(self) -> None:
        if self.leash is not None:
            self.leash.close()
            self.leash = None


class Burials:
    """All that are under way, by the container's key and by the process that holds the mounts."""

    def __init__(self, cradle: Cradle) -> None:
        self._cradle = cradle
        self._program = burial(cradle.architecture) if cradle.architecture else b""
        self._by_key: dict[str, Burial] = {}
        self._by_pid: dict[int, Burial] = {}

    def begin(self, key: str, mounts: int) -> Burial | None:
        """Takes `mounts`; None: there was nobody to give them to, and they have ended."""
        ours, theirs = socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        with theirs:
            sent = self._cradle.send(self._program, [mounts, theirs.fileno()])
        os.close(mounts)
        if not sent:
            ours.close()
            return None
        it = self._by_key[key] = Burial(key, ours)
        return it

    def born(self, it: Burial, pid: int) -> None:
        """The cradle has said which process holds the mounts."""
        self._by_pid[pid] = it
        it.let_go()

    def ended(self, it: Burial) -> list[Request]:
        """The mounts are gone; who has waited for that."""
        it.let_go()
        self._by_key.pop(it.key, None)
        return it.waiting

    def reaped(self, pid: int) -> Burial | None:
        """The burial that this process was for, if it was one."""
        return self._by_pid.pop(pid, None)

    def of(self, key: str) -> Burial | None:
        return self._by_key.get(key)
