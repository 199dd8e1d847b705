"""One process of a plan, from the clone to its exec or its wait for the start.

Rules: this process may wait (PID 1's loop may not); a process that does not come to life is killed
and reaped here, so that who called removes the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from wherry_guest.core.launch import OWN_PID_NAMESPACE, Descriptors, Launched, launch
from wherry_guest.core.steps import SetupError
from wherry_guest.oci.errors import OciError

if TYPE_CHECKING:
    from pathlib import Path

    from wherry_guest.core.plan import Plan
    from wherry_guest.core.syscalls import Kernel

_MAX_MESSAGE: Final = 65536

_os: Final[Any] = os
_signal: Final[Any] = signal
_socket: Final[Any] = socket


@dataclass(slots=True)
class Born:
    """A process that has come to life. `terminal`: the pty's master, the receiver's."""

    pid: int = 0
    terminal: int | None = None
    created: bool = False
    failure: dict[str, Any] = field(default_factory=dict)


def bear(
    kernel: Kernel,
    plan: Plan,
    fds: Descriptors,
    run_hooks: Callable[[int], None],
    beside: int | None = None,
) -> Born:
    """Make the process, and follow it until it runs its program or waits for its start.

    Args:
        run_hooks: called with its pid when it wants the hooks outside of it to be run.

    Raises:
        OciError: it failed; it is gone.
    """
    own = kernel.open(OWN_PID_NAMESPACE, os.O_RDONLY)
    try:
        launched = launch(kernel, plan, fds, own, beside)
    except OSError as error:
        raise OciError(f"make the process: {error.strerror or error}") from error
    finally:
        kernel.close(own)
    born = Born(0 if launched.midwife else launched.pid)
    try:
        _follow(launched.status, born, run_hooks)
        if launched.midwife:
            os.waitpid(launched.pid, 0)
        _check(born)
    except BaseException:
        _bury(launched, born)
        raise
    finally:
        launched.status.close()
    return born


def _follow(status: socket.socket, born: Born, run_hooks: Callable[[int], None]) -> None:
    while True:
        data, fds, _, _ = _socket.recv_fds(status, _MAX_MESSAGE, 1, _socket.MSG_CMSG_CLOEXEC)
        if not data:
            return
        message = json.loads(data)
        if fds:
            born.terminal = fds[0]
        elif "pid" in message:
            born.pid = message["pid"]
        elif "created" in message:
            born.created = True
        elif "ask" in message:
            run_hooks(born.pid)
            status.send(b"{}")
        else:
            born.failure = message


def _check(born: Born) -> None:
    if born.failure:
        raise OciError(born.failure["message"])
    if not born.pid:
        raise OciError("the process that was to make the container's has ended")


def _bury(launched: Launched, born: Born) -> None:
    """Kill and reap what was made."""
    if born.terminal is not None:
        os.close(born.terminal)
    for pid in {launched.pid, born.pid} - {0}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, _signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


@contextlib.contextmanager
def listening(directory: Path, name: str) -> Iterator[socket.socket]:
    """A listening socket `name` in `directory`, however long its path is."""
    sock = socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    fd = os.open(directory, os.O_RDONLY)
    try:
        sock.bind(f"/proc/self/fd/{fd}/{name}")
        sock.listen(1)
        yield sock
    finally:
        os.close(fd)
        sock.close()


def start(directory: Path, name: str) -> None:
    """Let the process that waits on the socket `name` go on, and await its exec.

    Raises:
        OciError: it did not come to that.
    """
    sock = socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    fd = os.open(directory, os.O_RDONLY)
    try:
        sock.connect(f"/proc/self/fd/{fd}/{name}")
        os.unlink(f"/proc/self/fd/{fd}/{name}")  # noqa: PTH108 - a path through a descriptor
        data = sock.recv(_MAX_MESSAGE)
    except OSError as error:
        raise OciError(f"start the container's process: {error.strerror}") from error
    finally:
        os.close(fd)
        sock.close()
    if data:
        raise OciError(json.loads(data)["message"])


@contextlib.contextmanager
def setup_errors() -> Iterator[None]:
    """A hook's failure in the block as an OciError."""
    try:
        yield
    except SetupError as error:
        raise OciError(error.message) from error


def exit_code(status: int) -> int:
    """A wait status as a shell has it: 128 and the signal's number for a killed process."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def forward_signals(pid: int) -> None:
    """Pass the signals that we get on to the process; Python delivers them while we wait."""

    def forward(number: int, frame: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    kept = {"SIGKILL", "SIGSTOP", "SIGCHLD", "SIGPIPE", "SIGURG", "SIGWINCH", "SIGTSTP", "SIGCONT"}
    for name in (entry.name for entry in signal.Signals):
        if name not in kept and not name.startswith("SIGRT"):
            signal.signal(getattr(signal, name), forward)


def end(pid: int) -> None:
    """Kill and reap a process of ours that has come to life."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, _signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
