"""Our OCI command line as a server: each command is a fork of a process that has imported it all.

`oci_process.py SOCKET_FD …` takes connections from the listening socket. A request is the JSON
[N, ARGUMENTS] with three descriptors, the command's stdin, stdout and stderr. The answer is the
JSON [EXIT_CODE, PID, NAME]: whose end is the command's, and NAME of the N-th call of its kernel,
which fails (N = 0: none does). The count goes on in forked children, so that every call of a
container's creation has its turn, wherever it happens; NAME is empty when N is beyond the last one.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import socket
import sys
import traceback
from typing import Any

from wherry_guest.core.syscalls import Kernel
from wherry_guest.oci.main import main

NEVER = ("let_go", "run_program", "close", "hold_user_namespace")
"""What cleans up must work (close(2) frees even when it fails), what is made of other calls counts
them."""
REQUEST_BYTES = 65536
NAME_BYTES = 64


class FailingKernel(Kernel):
    """Counts every call, and fails one. `note` is shared with the children: the call's name."""

    def __init__(self, failing: int, note: mmap.mmap) -> None:
        self.failing = failing
        self.note = note
        self.count = 0


def _counted(name: str) -> Any:
    method = getattr(Kernel, name)

    def call(self: FailingKernel, *args: Any) -> Any:
        self.count += 1
        if self.count == self.failing:
            self.note[: len(name)] = name.encode()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return method(self, *args)

    return call


for _name in vars(Kernel):
    if not _name.startswith("_") and _name not in NEVER:
        setattr(FailingKernel, _name, _counted(_name))


def serve(listener: socket.socket) -> None:
    """One fork for each connection, until the listener is closed by the other side's end."""
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _answer(connection)
        connection.close()
        _reap()


def _answer(connection: socket.socket) -> None:
    """In the child: run the command, and end."""
    code = 1
    note = mmap.mmap(-1, NAME_BYTES)
    try:
        request, fds, _, _ = socket.recv_fds(connection, REQUEST_BYTES, 3)
        failing, arguments = json.loads(request)
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
            os.close(fd)
        code = main(arguments, FailingKernel(failing, note) if failing else None)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - what a process of its own would do
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        name = note[:].rstrip(b"\0").decode()
        connection.send(json.dumps([code, os.getpid(), name]).encode())
        os._exit(code)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
