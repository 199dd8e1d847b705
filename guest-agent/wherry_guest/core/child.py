"""The forked child's life between PID 1's clone and the exec.

Rules: it runs in a copy of PID 1's memory and must never return into PID 1's loop; it imports
nothing (the root becomes the container's: an import would run the image's code, so the import
system is switched off first); it keeps no descriptor but stdio, the status socket and what the
plan needs. A failure goes up the status socket; an exec closes it, which is how PID 1 knows.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from wherry_guest.core.steps import SETUP_FAILED, State, Step, StepFailed, run

if TYPE_CHECKING:
    from wherry_guest.core.syscalls import Kernel

_IGNORED_BY_PYTHON: Final = ("SIGPIPE", "SIGXFSZ")
_LAST_FD: Final = 2**32 - 1  # close_range(2): ~0U
_MAX_MESSAGE: Final = 4000

_os: Final[Any] = os
_signal: Final[Any] = signal
_socket: Final[Any] = socket


def become(
    kernel: Kernel,
    plan: Sequence[Step],
    stdio: Sequence[int],
    status: socket.socket,
    keep: Sequence[int] = (),
) -> NoReturn:
    """Turn this freshly cloned process into the one that the plan describes.

    Args:
        stdio: three descriptors, all above 2; none: /dev/null until the plan opens a terminal.
        status: one end of a SOCK_SEQPACKET pair.
        keep: further descriptors that the plan uses.
    """
    exit_code = SETUP_FAILED
    try:
        reset_signals()
        sys.meta_path.clear()
        _take_stdio(kernel, stdio)
        close_others(kernel, [status.fileno(), *keep])
        run(plan, kernel, State(send_terminal=lambda fd: _send_terminal(status, fd)))
    except StepFailed as error:
        exit_code = error.exit_code
        _report(status, error.step, error.errno, exit_code, error.message)
    except BaseException as error:  # noqa: BLE001 - a bug is reported too; nothing may go on from here
        words = f"internal error: {type(error).__name__}: {error}"
        _report(status, "set the container up", getattr(error, "errno", None) or 0, 125, words)
    finally:
        os._exit(exit_code)


def reset_signals() -> None:
    """Undo what PID 1's Python did to signals; exec would inherit what is ignored or blocked."""
    signal.set_wakeup_fd(-1)
    for name in _IGNORED_BY_PYTHON:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])


def close_others(kernel: Kernel, keep: Sequence[int]) -> None:
    """Close every descriptor above stdio but `keep`."""
    first = 3
    for fd in sorted(keep):
        if fd > first:
            kernel.close_range(first, fd - 1)
        first = fd + 1
    kernel.close_range(first, _LAST_FD)


def _take_stdio(kernel: Kernel, stdio: Sequence[int]) -> None:
    sources = stdio or [kernel.open("/dev/null", os.O_RDWR)] * 3
    for target, fd in enumerate(sources):
        kernel.dup2(fd, target)


def _send_terminal(status: socket.socket, master: int) -> None:
    _socket.send_fds(status, [b'{"terminal": true}'], [master])


def _report(status: socket.socket, step: str, number: int, exit_code: int, message: str) -> None:
    report = {"step": step, "errno": number, "exit_code": exit_code}
    status.send(json.dumps({**report, "message": message[:_MAX_MESSAGE]}).encode())
