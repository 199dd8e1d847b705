"""The listening socket that systemd or launchd holds for the engine and hands over when it starts.

sd_listen_fds(3): descriptors from 3 on, for the process that LISTEN_PID names. launch(3):
`launch_activate_socket`, of the system's C library.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, MutableMapping

from wherry.connection import NO_ENGINE
from wherry.errors import EngineUnreachable, WherryError
from wherry.service.rendering import LAUNCHD_SOCKET

log = logging.getLogger(__name__)

_FIRST = 3
"""SD_LISTEN_FDS_START of systemd/sd-daemon.h."""

_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_REQUEST_BYTES = 65536
_SILENCE_SECONDS = 0.5
_WAITING_SECONDS = 0.05
"""A client that has started an engine is there before it, and its request at once."""
_TURN_AWAY_SECONDS = 5.0
"""Docker's client asks two or three times, each on a connection of its own when it must."""

Activate = Callable[[str], list[int]]
"""The descriptors of a launchd socket by its name; raises OSError."""


def activated_listener() -> socket.socket | None:
    """The listener that this process was started with; None: it was not started for a socket.

    Raises:
        EngineUnreachable: there is not exactly one, or it is no listening Unix socket.
    """
    if sys.platform == "darwin":
        return from_launchd(_launch_activate_socket)
    return from_systemd(os.environ)


def from_systemd(environ: MutableMapping[str, str], first: int = _FIRST) -> socket.socket | None:
    """The one of LISTEN_FDS, whose variables are removed: children are not meant. Raises as
    `activated_listener`."""
    values = {name: environ.pop(name, "") for name in _VARIABLES}
    if values["LISTEN_PID"] != str(os.getpid()):
        return None
    if values["LISTEN_FDS"] != "1":
        raise EngineUnreachable(f"one socket is expected, LISTEN_FDS is {values['LISTEN_FDS']!r}")
    return _listener(first)


def from_launchd(activate: Activate) -> socket.socket | None:
    """The one of this job's property list. Raises as `activated_listener`."""
    try:
        descriptors = activate(LAUNCHD_SOCKET)
    except OSError as error:
        log.info("launchd has no socket for this process: %s", error)
        return None
    if len(descriptors) != 1:
        raise EngineUnreachable(f"one socket is expected of launchd, there are {len(descriptors)}")
    return _listener(descriptors[0])


def turn_away(listener: socket.socket, error: WherryError, *, others: bool = True) -> None:
    """Answer the connections that wait with `error`.

    Args:
        others: also those that follow at once. Whoever holds the listener would start the next
            engine for them, and so on for ever.
    """
    message = f"the engine cannot start: {error}"
    body = json.dumps({"message": message, "hint": error.hint}).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        f"{NO_ENGINE}: it cannot start\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode()
    until = time.monotonic() + _TURN_AWAY_SECONDS
    listener.settimeout(_SILENCE_SECONDS if others else _WAITING_SECONDS)
    with contextlib.suppress(TimeoutError):
        while time.monotonic() < until:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_SILENCE_SECONDS)
                request = connection.recv(_REQUEST_BYTES)  # left unread it would cut off the answer
                connection.sendall(head if request.startswith(b"HEAD ") else head + body)


def _listener(descriptor: int) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        listener = socket.socket(fileno=descriptor)
        listening = _listens(listener)
    except OSError as error:
        raise EngineUnreachable(
            f"descriptor {descriptor} is not a socket: {error.strerror}"
        ) from error
    if not listening or listener.family != getattr(socket, "AF_UNIX", None):
        listener.close()
        raise EngineUnreachable(f"descriptor {descriptor} is not a listening Unix socket")
    return listener


def _listens(sock: socket.socket) -> bool:
    """Whether it is a listener; also where the system does not tell (macOS: ENOPROTOOPT)."""
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return True


def _launch_activate_socket(name: str) -> list[int]:
    library = ctypes.CDLL(None)
    library.launch_activate_socket.restype = ctypes.c_int
    descriptors = ctypes.POINTER(ctypes.c_int)()
    count = ctypes.c_size_t(0)
    code = library.launch_activate_socket(
        name.encode("ascii"), ctypes.byref(descriptors), ctypes.byref(count)
    )
    if code:
        raise OSError(code, os.strerror(code))
    try:
        return [descriptors[index] for index in range(count.value)]
    finally:
        library.free.argtypes = [ctypes.c_void_p]
        library.free(descriptors)
