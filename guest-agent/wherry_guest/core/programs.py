"""Running a program to its end with an input and a time limit: for hooks, in the child too.

Rules: no subprocess module (the forked child imports nothing and its root may be a container's);
the program gets stdio and nothing else; what it writes to stdout and stderr is read to its end but
kept only to a bound; a program that takes too long is killed.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

KEPT_OUTPUT: Final = 4096
_PIECE: Final = 65536
_LAST_FD: Final = 2**32 - 1  # close_range(2): ~0U
_MARK: Final = b"\0errno "

# Names of the standard library that exist on Linux only; mypy checks this file for all platforms.
_os: Final[Any] = os
_select: Final[Any] = select
_signal: Final[Any] = signal


class Calls(Protocol):
    """What it needs of `core.syscalls.Kernel`, which has it for a method."""

    def clone(self, flags: int, cgroup: int | None) -> int: ...

    def pidfd_open(self, pid: int) -> int: ...

    def dup2(self, fd: int, target: int) -> None: ...

    def close_range(self, first: int, last: int) -> None: ...

    def execve(self, path: str, args: Sequence[str], env: Sequence[str]) -> NoReturn: ...


@dataclass(frozen=True, slots=True)
class ProgramEnd:
    """How it went: os.waitstatus_to_exitcode's number, and the first of what it said."""

    exit_code: int
    output: bytes


def run_program(
    kernel: Calls,
    path: str,
    args: Sequence[str],
    env: Sequence[str],
    text: bytes,
    timeout: float | None,
) -> ProgramEnd:
    """Run `path` with `text` as its standard input.

    Raises:
        TimeoutError: it ran for longer than `timeout` seconds and was killed.
        OSError: it could not be executed.
    """
    input_reader, input_writer = _os.pipe2(_os.O_CLOEXEC)
    output_reader, output_writer = _os.pipe2(_os.O_CLOEXEC)
    pid = kernel.clone(0, None)
    if pid == 0:
        _become(kernel, path, args, env, input_reader, output_writer)
    os.close(input_reader)
    os.close(output_writer)
    _os.set_blocking(input_writer, False)
    watch = _Watch(kernel.pidfd_open(pid), input_writer, output_reader, text)
    try:
        ended = watch.run(timeout)
    finally:
        watch.close()
        os.kill(pid, _signal.SIGKILL)  # it is there at least as a zombie
        _, status = os.waitpid(pid, 0)
    if not ended:
        raise TimeoutError(f"{path} ran for longer than {timeout} s")
    output = bytes(watch.output)
    if output.startswith(_MARK):
        number = int(output.removeprefix(_MARK))
        raise OSError(number, os.strerror(number), path)
    return ProgramEnd(os.waitstatus_to_exitcode(status), output)


class _Watch:
    """Feeds the input and reads the output until the program has ended."""

    def __init__(self, pidfd: int, writer: int, reader: int, text: bytes) -> None:
        self.output = bytearray()
        self._pidfd, self._reader, self._writer = pidfd, reader, writer
        self._rest = memoryview(text)
        self._poll = _select.poll()
        self._poll.register(pidfd, _select.POLLIN)
        self._poll.register(reader, _select.POLLIN)
        self._poll.register(writer, _select.POLLOUT)

    def run(self, timeout: float | None) -> bool:
        """False when the time was up."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = self._poll.poll(left)
            if not ready:
                return False
            fds = [fd for fd, _ in ready]
            if self._writer in fds:
                self._feed()
            if self._reader in fds:
                self._read()
            elif self._pidfd in fds:
                return True

    def close(self) -> None:
        for fd in (self._pidfd, self._reader, self._writer):
            if fd >= 0:
                os.close(fd)

    def _feed(self) -> None:
        try:
            self._rest = self._rest[os.write(self._writer, self._rest) :]
        except BrokenPipeError:
            self._rest = self._rest[:0]
        if not self._rest:
            self._poll.unregister(self._writer)
            os.close(self._writer)
            self._writer = -1

    def _read(self) -> None:
        data = os.read(self._reader, _PIECE)
        self.output += data[: KEPT_OUTPUT - len(self.output)]
        if not data:
            self._poll.unregister(self._reader)
            os.close(self._reader)
            self._reader = -1


def _become(
    kernel: Calls, path: str, args: Sequence[str], env: Sequence[str], source: int, sink: int
) -> NoReturn:
    said = sink
    try:
        kernel.dup2(source, 0)
        kernel.dup2(sink, 1)
        said = 1
        kernel.dup2(sink, 2)
        kernel.close_range(3, _LAST_FD)
        kernel.execve(path, args, env)
    except OSError as error:
        os.write(said, _MARK + str(error.errno).encode())
    finally:
        os._exit(127)
