"""Whether clients still find this engine: its socket stands where they look.

A cleaner of temporary files may have removed it, or a client that could not connect has put that of
a new engine there. Nobody reaches the old one then, and it holds the machine's lock: it has to end.
"""

from __future__ import annotations

from pathlib import Path


class Doorstep:
    """Args: socket: where clients look; None, or one that is not there yet: nothing is watched."""

    def __init__(self, socket: Path | None) -> None:
        self._socket = socket
        self._ours = _identity(socket) if socket is not None else None

    def lost(self) -> bool:
        """Whether the socket is gone, or another one. What cannot be looked at is not lost."""
        if self._socket is None or self._ours is None:
            return False
        try:
            return _identity(self._socket) != self._ours
        except OSError:
            return False


def _identity(path: Path) -> tuple[int, int] | None:
    """None: there is none."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
