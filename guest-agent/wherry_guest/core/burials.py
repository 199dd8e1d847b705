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
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from wherry_guest.core.flatten import burial

if TYPE_CHECKING:
    from wherry_guest.core.births import Births

_socket: Final[Any] = socket


@dataclass(slots=True)
class _Burial:
    """One container's mounts, on their way out.

    Args:
        leash: closed when the process may end.
        waiting: what comes then.
    """

    key: str
    leash: socket.socket
    waiting: list[Callable[[], None]] = field(default_factory=list)


class Burials:
    """All that are under way, by the container's key and by the process that holds the mounts.

    Args:
        settled: called whenever mounts have ended.
    """

    def __init__(self, births: Births, settled: Callable[[], None]) -> None:
        self._births = births
        self._settled = settled
        self._program = burial(births.architecture) if births.architecture else b""
        self._by_key: dict[str, _Burial] = {}
        self._by_pid: dict[int, _Burial] = {}

    def begin(self, key: str, mounts: int) -> None:
        """Takes `mounts`. Where nobody else can hold them they end here."""
        ours, theirs = socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        it = _Burial(key, ours)

        def born(pid: int) -> None:
            self._by_pid[pid] = it
            it.leash.close()

        with theirs:
            fds = [mounts, theirs.fileno()]
            sent = self._births.ask(self._program, fds, born, lambda certain: self._end(it))
        os.close(mounts)
        if sent:
            self._by_key[key] = it
        else:
            ours.close()

    def when_over(self, key: str, callback: Callable[[], None]) -> bool:
        """Call back once the mounts of `key` have ended; False: none are on their way out."""
        if key not in self._by_key:
            return False
        self._by_key[key].waiting.append(callback)
        return True

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def reaped(self, pid: int) -> bool:
        """Whether the process held mounts, which have ended with it."""
        it = self._by_pid.pop(pid, None)
        if it is not None:
            self._end(it)
        return it is not None

    def _end(self, it: _Burial) -> None:
        it.leash.close()
        self._by_key.pop(it.key, None)
        self._settled()
        for callback in it.waiting:
            callback()
