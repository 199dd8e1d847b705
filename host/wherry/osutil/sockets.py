"""Unix listening sockets that only their owner can connect to, put in place atomically."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from wherry.errors import StorageError

_BACKLOG = 256


def listen_unix(path: Path) -> socket.socket:
    """A listening socket at `path` with mode 0600; one that stands there is replaced.

    It is bound under another name, restricted, and renamed: no moment has a stranger's access.

    Raises:
        StorageError: the path is too long, or the directory is missing or not writable.
    """
    if sys.platform == "win32":
        raise StorageError("the engine cannot serve its API on Windows yet")
    temporary = path.with_name(f".{os.getpid():x}.s")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        temporary.unlink(missing_ok=True)
        listener.bind(os.fspath(temporary))
        temporary.chmod(0o600)
        listener.listen(_BACKLOG)
        temporary.replace(path)
    except OSError as error:
        listener.close()
        raise StorageError(f"cannot listen on {path}: {error.strerror or error}") from error
    return listener
