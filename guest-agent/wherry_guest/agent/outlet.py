"""A descriptor that is written to without blocking: what does not fit at once waits here.

The rule: everything given is taken; `write` says False when it is time to stop until `on_room`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from wherry_guest.loop import Loop


class Outlet:
    """Args:
    on_room: called when all that waited was written.
    on_broken: called once, when nobody reads any more; what waits is dropped.
    """

    def __init__(
        self,
        loop: Loop,
        fd: int,
        on_room: Callable[[], None],
        on_broken: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._fd = fd
        self._on_room = on_room
        self._on_broken = on_broken
        self._waiting: deque[bytes] = deque()
        self._open = True

    def write(self, data: bytes) -> bool:
        """Take `data`; False: something waits now."""
        if not self._open:
            return True
        if self._waiting:
            self._waiting.append(data)
            return False
        rest = self._put(data)
        if not rest:
            return True
        self._waiting.append(rest)
        self._loop.add_writer(self._fd, self._go_on)
        return False

    def close(self) -> None:
        """Stop; the descriptor stays open."""
        if self._waiting:
            self._loop.remove_writer(self._fd)
        self._waiting.clear()
        self._open = False

    def _put(self, data: bytes) -> bytes:
        """What could not be written; b"" when all was, or nobody reads."""
        try:
            return data[os.write(self._fd, data) :]
        except BlockingIOError:
            return data
        except OSError:
            self.close()
            self._loop.call_soon(self._on_broken)
            return b""

    def _go_on(self) -> None:
        while self._waiting:
            rest = self._put(self._waiting[0])
            if not self._open:
                return
            if rest:
                self._waiting[0] = rest
                return
            self._waiting.popleft()
        self._loop.remove_writer(self._fd)
        self._on_room()
