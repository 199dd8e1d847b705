"""What the link runs over: the virtio-serial port, or a connection that has taken its place.

The rule: the port is the one that is always there, so it is never given up for good. Another line
(a vsock, pipes of an SSH server) is used for as long as it lasts; meanwhile the port is looked at
now and then, and a host that speaks there is heard: whoever cannot use the other line any more gets
the machine back. The session survives all of that, it is `wire.Connection`'s. Stdlib only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from wherry_guest import wire
from wherry_guest.loop import Loop, Timer
from wherry_guest.port import READ_PIECE, Ends, Port

_os: Final[Any] = os

LOOK_SECONDS: Final = 1.0
"""Between two looks at the port while another line is used. A host repeats itself until answered,
at the latest every 2 s."""

_READS: Final = 64
"""Reads in one look: others want their turn."""


class Lines:
    """Moves a `wire.Connection` between lines.

    Args:
        open_port, dispatch: as `Port`'s.
    """

    def __init__(
        self,
        loop: Loop,
        open_port: Callable[[], int],
        conn: wire.Connection,
        dispatch: Callable[[list[wire.Event]], None],
    ) -> None:
        self._loop = loop
        self._open_port = open_port
        self._conn = conn
        self._dispatch = dispatch
        self._port = Port(loop, open_port, conn, dispatch)
        self._over: Callable[[], None] | None = None
        self._watched = -1
        self._drained = False
        self._timer: Timer | None = None

    def start(self) -> None:
        """Open the port, now or as soon as there is one."""
        self._port.start()

    def close(self) -> None:
        """Give everything back; what was not written yet is dropped."""
        self._forget_watch()
        self._port.close()
        self._tell_over()

    def flush_soon(self) -> None:
        """Write what the connection has to send, at the end of this round."""
        self._port.flush_soon()

    def move(self, ends: Ends, over: Callable[[], None] = lambda: None) -> None:
        """Use this line from now on, until it ends; then call `over`.

        The caller knows that a host is behind it.
        """
        self._forget_watch()
        self._port.close()
        self._tell_over()
        self._over = over
        self._port = Port(self._loop, lambda: ends, self._conn, self._dispatch, self._return)
        self._drained = False
        self._timer = self._loop.call_later(LOOK_SECONDS, self._look)
        self._port.start()

    def _return(self) -> None:
        """Back to the port."""
        self._forget_watch()
        self._port.close()
        self._tell_over()
        self._port = Port(self._loop, self._open_port, self._conn, self._dispatch)
        self._port.start()

    def _tell_over(self) -> None:
        over, self._over = self._over, None
        if over is not None:
            over()

    def _look(self) -> None:
        """Is a host at the port? What the first look finds may have been left by the move."""
        if self._hear() and self._drained:
            self._return()
            return
        self._drained = True
        self._timer = self._loop.call_later(LOOK_SECONDS, self._look)

    def _hear(self) -> bool:
        """Whether somebody has written to the port; what was written is thrown away."""
        heard = False
        try:
            if self._watched < 0:
                self._watched = self._open_port()
                _os.set_blocking(self._watched, False)
            for _ in range(_READS):
                if not os.read(self._watched, READ_PIECE):
                    break
                heard = True
        except BlockingIOError:
            return heard
        except OSError:
            self._close_watched()  # there is no such port (any more): the next look opens it anew
        return heard

    def _forget_watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._close_watched()

    def _close_watched(self) -> None:
        if self._watched >= 0:
            os.close(self._watched)
            self._watched = -1
