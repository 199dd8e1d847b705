"""The forked child's life between PID 1's clone and the exec.

Rules: it runs in a copy of PID 1's memory and must never return into PID 1's loop; it imports
nothing (the root becomes the container's: an import would run the image's code, so the import
system is switched off first); it keeps no descriptor but stdio, the status socket and what the
plan needs. A failure goes up the status socket; an exec closes it, which is how PID 1 knows.

Messages on the status socket, JSON objects, from the child: {"pid"} by a midwife, {"terminal"} with
the pty's master, {"ask"} (answered by any message), {"created"} when it waits for its start, and
{"step", "errno", "exit_code", "message"} when it has failed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from wherry_guest.core.steps import SETUP_FAILED, SetupError, State, Step, StepFailed, failed, run

if TYPE_CHECKING:
    from wherry_guest.core.syscalls import Kernel

_IGNORED_BY_PYTHON: Final = ("SIGPIPE", "SIGXFSZ")
_ENDING: Final = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM")
_BEGIN: Final = "set the container up"
_LAST_FD: Final = 2**32 - 1  # close_range(2): ~0U
_MAX_MESSAGE: Final = 4000
TERMINAL: Final = b'{"terminal": true}'
_MAX_ANSWER: Final = 4096

_os: Final[Any] = os
_signal: Final[Any] = signal
_socket: Final[Any] = socket


class Status:
    """The child's way to whoever made it.

    Args:
        sock: one end of a SOCK_SEQPACKET pair.
        listener: a listening socket of that kind: who connects to it starts the container, and is
            told from then on.
    """

    def __init__(self, sock: socket.socket, listener: int | None = None) -> None:
        self._socket = sock
        self._listener = listener

    def begin(self, kernel: Kernel, keep: Sequence[int]) -> None:
        """Become a process of its own: signals, imports, descriptors."""
        reset_signals()
        sys.meta_path.clear()
        close_others(kernel, [self._socket.fileno(), *keep])

    def state(self) -> State:
        return State(
            send_terminal=self._send_terminal, ask=self._ask, await_start=self._await_start
        )

    def send(self, message: dict[str, Any]) -> None:
        self._socket.send(json.dumps(message).encode())

    def _send_terminal(self, master: int) -> None:
        _socket.send_fds(self._socket, [TERMINAL], [master])

    def _ask(self, request: str) -> None:
        self.send({"ask": request})
        if not self._socket.recv(_MAX_ANSWER):
            raise SetupError(f"the runtime has ended before the {request} were done")

    def _await_start(self) -> None:
        if self._listener is None:
            raise SetupError("nobody will start the container")
        self.send({"created": True})
        self._socket.close()
        for name in _ENDING:  # PID 1 of a namespace is deaf to what it does not handle
            signal.signal(getattr(signal, name), _end)
        listener = socket.socket(fileno=self._listener)
        self._socket, _ = listener.accept()
        listener.close()


def become(
    kernel: Kernel,
    plan: Sequence[Step],
    stdio: Sequence[int],
    status: Status,
    keep: Sequence[int] = (),
    state: State | None = None,
) -> NoReturn:
    """Turn this freshly cloned process into the one that the plan describes.

    Args:
        stdio: three descriptors, all above 2, or 0, 1, 2; none: /dev/null until the plan opens a
            terminal.
        keep: further descriptors that the plan uses.
        state: a midwife's, with what it has prepared.
    """
    exit_code = SETUP_FAILED
    try:
        with failing(status) as failure:
            more = [] if state is None else state.descriptors()
            _take_stdio(kernel, stdio)
            status.begin(kernel, [*keep, *more])
            run(plan, kernel, status.state() if state is None else state)
        exit_code = failure.exit_code
    finally:
        os._exit(exit_code)


@dataclass(slots=True)
class Failure:
    exit_code: int = 0


@contextmanager
def failing(status: Status) -> Iterator[Failure]:
    """Report what fails in the block; nothing goes on from there."""
    failure = Failure()
    try:
        yield failure
    except StepFailed as error:
        _report(status, failure, error)
    except OSError as error:
        _report(status, failure, failed(_BEGIN, error))
    except BaseException as error:  # noqa: BLE001 - a bug is reported too; nothing may go on from here
        words = f"internal error: {type(error).__name__}: {error}"
        _report(status, failure, StepFailed(_BEGIN, 0, SETUP_FAILED, words))


def reset_signals() -> None:
    """Undo what PID 1's Python did to signals; exec would inherit what is ignored or blocked."""
    signal.set_wakeup_fd(-1)
    for name in _IGNORED_BY_PYTHON:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])


def close_others(kernel: Kernel, keep: Sequence[int]) -> None:
    """Close every descriptor above stdio but `keep`."""
    first = 3
    for fd in sorted(set(keep)):
        if fd > first:
            kernel.close_range(first, fd - 1)
        first = max(first, fd + 1)
    kernel.close_range(first, _LAST_FD)


def _take_stdio(kernel: Kernel, stdio: Sequence[int]) -> None:
    sources = stdio or [kernel.open("/dev/null", os.O_RDWR)] * 3
    for target, fd in enumerate(sources):
        if fd != target:
            kernel.dup2(fd, target)


def _report(status: Status, failure: Failure, error: StepFailed) -> None:
    failure.exit_code = error.exit_code
    report = {"step": error.step, "errno": error.errno, "exit_code": error.exit_code}
    status.send({**report, "message": error.message[:_MAX_MESSAGE]})


def _end(number: int, frame: Any) -> NoReturn:
    """A signal while the start is awaited; the exec puts every handler back."""
    os._exit(128 + number)
