"""Helper programs (mkfs, fsck, nft) as children of the agent, awaited without blocking its loop.

They are the agent's own children: PID 1 does not reap them. A child that outlives its deadline is
killed; its output (at most OUTPUT_LIMIT bytes) goes into the error.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from wherry_guest.agent.tasks import Promise
from wherry_guest.loop import Loop

_os: Final[Any] = os
_signal: Final[Any] = signal

OUTPUT_LIMIT: Final = 64 * 1024
_ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


@dataclass(frozen=True, slots=True)
class Finished:
    """How a helper ended. `code` is the exit code, -n for signal n."""

    argv: tuple[str, ...]
    code: int
    output: str

    @property
    def complaint(self) -> str:
        """One line for a person: program, code, the last line that it printed."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return f"{self.argv[0]} ended with {self.code}: {lines[-1] if lines else 'no output'}"


def sleep(loop: Loop, seconds: float) -> Promise[None]:
    """A promise that the loop resolves after `seconds`."""
    promise: Promise[None] = Promise()
    loop.call_later(seconds, lambda: promise.resolve(None))
    return promise


def run_program(
    loop: Loop,
    argv: Sequence[str],
    timeout: float,
    environment: Mapping[str, str] | None = None,
) -> Promise[Finished]:
    """Start a program with its output in a pipe and no input.

    Args:
        environment: what it finds there besides the usual.

    Raises:
        OSError: it could not be started (at once, not through the promise).
    """
    reader, writer = _os.pipe2(_os.O_CLOEXEC | _os.O_NONBLOCK)
    try:
        actions = [
            (_os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (_os.POSIX_SPAWN_DUP2, writer, 1),
            (_os.POSIX_SPAWN_DUP2, writer, 2),
        ]
        pid = _os.posix_spawnp(
            argv[0],
            list(argv),
            {**_ENVIRONMENT, **(environment or {})},
            file_actions=actions,
            setsigdef=[_signal.SIGPIPE],  # which we ignore
        )
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return _Child(loop, tuple(argv), pid, reader, timeout).done


class _Child:
    def __init__(
        self, loop: Loop, argv: tuple[str, ...], pid: int, output: int, timeout: float
    ) -> None:
        self.done: Promise[Finished] = Promise()
        self._loop = loop
        self._argv = argv
        self._pid = pid
        self._pidfd: int = _os.pidfd_open(pid)
        self._output = output
        self._text = bytearray()
        self._timer = loop.call_later(timeout, self._kill)
        loop.add_reader(self._pidfd, self._exited)
        loop.add_reader(output, self._read)

    def _read(self) -> None:
        data = os.read(self._output, OUTPUT_LIMIT)
        if data:
            self._text = (self._text + data)[-OUTPUT_LIMIT:]
        else:
            self._loop.remove_reader(self._output)

    def _kill(self) -> None:
        _signal.pidfd_send_signal(self._pidfd, _signal.SIGKILL)

    def _exited(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self._pid, 0)
        # A grandchild may hold the pipe open: what is there now is what counts.
        while self._loop.remove_reader(self._output):
            try:
                data = os.read(self._output, OUTPUT_LIMIT)
            except BlockingIOError:
                break
            if data:
                self._text = (self._text + data)[-OUTPUT_LIMIT:]
        os.close(self._output)
        text = self._text.decode("utf-8", "replace")
        self.done.resolve(Finished(self._argv, os.waitstatus_to_exitcode(status), text))
