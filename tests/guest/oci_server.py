"""The tests' side of oci_process.py: commands of ours without a Python that starts for each.

In the machine, without hardware virtualization, such a start takes most of a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waiting import PATIENCE

SCRIPT = Path(__file__).with_name("oci_process.py")
COMMAND_SECONDS = 20.0 * PATIENCE
_PIECE = 65536


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command went; `failed`: the name of the kernel call that was made to fail."""

    returncode: int
    stdout: str
    stderr: str
    failed: str = ""


class OciServer:
    """A process that runs commands, in the namespace that `enter` leads into.

    Args:
        mark: an argument by which what it leaves behind is known among processes.

    Attributes:
        pid: its own.
    """

    def __init__(self, enter: Sequence[str], address: Path, mark: str, guest_agent: Path) -> None:
        self._address = os.fspath(address)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(self._address)
            listener.listen()
            number = listener.fileno()
            program = [sys.executable, "-B", os.fspath(SCRIPT), str(number), mark]
            self._process = subprocess.Popen(
                [*enter, *program],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.fspath(guest_agent)},
                pass_fds=[number],
            )
        self.pid = self._process.pid

    def run(
        self,
        arguments: Sequence[str],
        *,
        input: str | None = None,
        stdout: Any = None,
        stderr: Any = None,
        failing: int = 0,
    ) -> Ended:
        """Run a command to its end.

        Args:
            stdout, stderr: files or descriptors; else it is a pipe, which is read to its end.
            failing: the number of the kernel call that fails; 0: none does.
        """
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            connection.connect(self._address)
            source = stack.enter_context(_input(input))
            pipes: dict[int, bytearray] = {}
            ends = [source.fileno()]
            with contextlib.ExitStack() as theirs:
                for file in (stdout, stderr):
                    if file is None:
                        reader, writer = os.pipe()
                        stack.callback(os.close, reader)
                        theirs.callback(os.close, writer)
                        pipes[reader] = bytearray()
                        ends.append(writer)
                    else:
                        ends.append(file if isinstance(file, int) else file.fileno())
                request = json.dumps([failing, list(arguments)]).encode()
                socket.send_fds(connection, [request], ends)
            code, pid, failed = _answer(connection, pipes, arguments)
        _await_end(pid)
        texts = iter([data.decode() for data in pipes.values()])
        said = [next(texts) if file is None else "" for file in (stdout, stderr)]
        return Ended(code, *said, failed)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        Path(self._address).unlink()


def _input(text: str | None) -> Any:
    if text is None:
        return Path(os.devnull).open("rb")
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as file:
        file.write(text.encode())  # a pipe takes 64 KiB; tests say less
    return os.fdopen(reader, "rb")


def _answer(
    connection: socket.socket, pipes: dict[int, bytearray], arguments: Sequence[str]
) -> tuple[int, int, str]:
    """The answer, once it is there and all pipes are at their ends."""
    deadline = time.monotonic() + COMMAND_SECONDS
    answer: Any = None
    with selectors.DefaultSelector() as selector:
        for end in (connection.fileno(), *pipes):
            selector.register(end, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise subprocess.TimeoutExpired(list(arguments), COMMAND_SECONDS)
            for key, _ in ready:
                if key.fd not in pipes:
                    data = connection.recv(_PIECE)
                    assert data, f"it ended without an answer: {arguments}"
                    answer = json.loads(data)
                    selector.unregister(key.fd)
                elif data := os.read(key.fd, _PIECE):
                    pipes[key.fd] += data
                else:
                    selector.unregister(key.fd)
    return answer[0], answer[1], answer[2]


def _await_end(pid: int) -> None:
    """It has answered, and is about to end: afterwards what is left is left for good."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended, _, _ = select.select([pidfd], [], [], COMMAND_SECONDS)
    os.close(pidfd)
    assert ended, f"the command's process {pid} has answered and does not end"
