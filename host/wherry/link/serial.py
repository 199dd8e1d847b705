"""The way to the guest's virtio-serial port: the Unix socket, or the pipe, of QEMU's chardev.

One client is served at a time; a second one waits, unanswered.
"""

from __future__ import annotations

from pathlib import Path

from wherry.link.transport import Connect, SocketTransport, Transport
from wherry.osutil.local import connect_local


def local_socket(path: Path) -> Connect:
    """A `connect` for `open_link`: to where a virtio-serial chardev answers.

    Raises (when called): OSError, nobody does.
    """

    async def connect() -> Transport:
        _, transport = await connect_local(SocketTransport, path)
        return transport

    return connect
