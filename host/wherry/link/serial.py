"""The way to the guest's virtio-serial port: the Unix socket of QEMU's chardev.

QEMU listens (`server=on,wait=off`) and serves one client at a time; a second one waits in the
backlog, unanswered. It closes the port for the guest when the client goes.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from wherry.link.transport import Connect, SocketTransport, Transport


def unix_socket(path: Path) -> Connect:
    """A `connect` for `open_link`: to the Unix socket of a virtio-serial chardev.

    Raises (when called): OSError, QEMU does not listen there; on Windows always, since QEMU's
    chardevs dial out there and the machine hands over what it has accepted.
    """

    async def connect() -> Transport:
        if sys.platform == "win32":
            raise OSError("there are no Unix sockets for asyncio on Windows")
        loop = asyncio.get_running_loop()
        _, transport = await loop.create_unix_connection(SocketTransport, os.fspath(path))
        return transport

    return connect
