"""A blocking connection to an engine: over its Unix socket, or on Windows its named pipe."""

from __future__ import annotations

import os
import select
import socket
import sys
from pathlib import Path
from typing import Protocol

from wherry.paths import MachinePaths

NO_ENGINE = "wherry-no-engine"
"""A header of answers that tell why there is no engine."""


class Connection(Protocol):
    """A connected socket, or `wherry.osutil.pipes.PipeConnection`."""

    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, limit: int, /) -> bytes: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


def connect(paths: MachinePaths, at: Path | None = None) -> Connection:
    """`at`: a socket elsewhere. Raises OSError when no engine answers there."""
    if sys.platform == "win32":
        from wherry.osutil.pipes import PipeConnection  # here: only Windows pays for it

        return PipeConnection(paths.api_socket)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(os.fspath(at or paths.api_socket))
    except OSError:
        connection.close()
        raise
    return connection


def readable(connection: Connection, seconds: float) -> bool:
    """Whether `recv` has something to return, also the end, within so many seconds."""
    if sys.platform == "win32":
        from wherry.osutil.pipes import PipeConnection

        assert isinstance(connection, PipeConnection)
        return connection.readable(seconds)
    assert isinstance(connection, socket.socket)
    poller = select.poll()  # unlike select it knows no limit on descriptor numbers
    poller.register(connection, select.POLLIN)
    return bool(poller.poll(seconds * 1000))
