"""A loopback port that leads to a port of a container, by way of `wherry exec`: no network needed.

Every connection is one `exec -i` of a bash in the container, whose /dev/tcp does the rest; the
accepted socket is its standard input and output, so nothing is copied here.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator

from harness import Wherry

_SCRIPT = "exec 3<>/dev/tcp/127.0.0.1/{port} || exit 1; cat <&3 & cat <&0 >&3 & wait -n; kill %1 %2"
END_SECONDS = 10.0


@contextlib.contextmanager
def relay(wherry: Wherry, container: str, port: int) -> Iterator[str]:
    """`127.0.0.1:PORT` on this side, for as long as the block lasts."""
    script = _SCRIPT.format(port=port)
    argv = wherry.argv("exec", "-i", container, "bash", "-c", script)
    running: list[subprocess.Popen[bytes]] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # closed: the block has ended
            with connection:
                process = subprocess.Popen(
                    argv,
                    env=wherry.environment,
                    stdin=connection,
                    stdout=connection,
                    stderr=subprocess.DEVNULL,
                )
            running.append(process)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(END_SECONDS)
        for process in running:
            process.kill()
            process.wait(END_SECONDS)
