"""One clone that makes a process of a plan, for PID 1 and for the command line alike.

Rules: single-threaded callers only (the clone passes by fork hooks); nothing here waits for the
child. What a plan does outside runs in a *midwife*, a short-lived child of the caller, who makes
the process as the caller's child too (CLONE_PARENT), says its pid on the status socket, and ends.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from wherry_guest.core.child import Status, become, failing
from wherry_guest.core.steps import SETUP_FAILED, run
from wherry_guest.core.syscalls import CLONE_NEWPID, CLONE_PARENT

if TYPE_CHECKING:
    from wherry_guest.core.plan import Plan
    from wherry_guest.core.syscalls import Kernel

_socket: Final[Any] = socket

OWN_PID_NAMESPACE: Final = "/proc/self/ns/pid"


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What the new process gets.

    Args:
        stdio: three descriptors, all above 2, or 0, 1 and 2 themselves; none: /dev/null until the
            plan opens a terminal.
        cgroup: the directory of the cgroup that it is born in.
        keep: further ones that the plan uses.
        preserved: so many from 3 on are the process's own for good.
        listener: where the start will be asked for.
    """

    stdio: Sequence[int]
    cgroup: int | None
    keep: Sequence[int] = ()
    preserved: int = 0
    listener: int | None = None

    def kept(self) -> list[int]:
        more = [] if self.listener is None else [self.listener]
        return [*self.keep, *range(3, 3 + self.preserved), *more]


@dataclass(frozen=True, slots=True)
class Launched:
    """A child of ours: the process itself, or the midwife, who will tell its pid.

    `status` tells the rest (`core.child`); the caller closes it.
    """

    pid: int
    midwife: bool
    status: socket.socket


def launch(
    kernel: Kernel, plan: Plan, fds: Descriptors, own_pid_namespace: int, beside: int | None = None
) -> Launched:
    """Make the process; OSError.

    Args:
        own_pid_namespace: a descriptor of the caller's own.
        beside: a pidfd (or a pid namespace) whose pid namespace it is born in.
    """
    ours, theirs = socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        if plan.outside:
            pid = kernel.clone(0, None)
            if pid == 0:
                _deliver(kernel, plan, fds, theirs)
        else:
            pid = _clone(kernel, plan, fds, own_pid_namespace, beside)
            if pid == 0:
                status = Status(theirs, fds.listener)
                become(kernel, plan.inside, fds.stdio, status, fds.kept())
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return Launched(pid, bool(plan.outside), ours)


def _clone(
    kernel: Kernel, plan: Plan, fds: Descriptors, own_pid_namespace: int, beside: int | None
) -> int:
    flags = CLONE_NEWPID if plan.new_pid else 0
    if plan.pid_namespace is not None:
        namespace = kernel.open(plan.pid_namespace, os.O_RDONLY)
        try:
            return clone_beside(kernel, namespace, fds.cgroup, own_pid_namespace)
        finally:
            kernel.close(namespace)
    if beside is not None:
        return clone_beside(kernel, beside, fds.cgroup, own_pid_namespace)
    return kernel.clone(flags, fds.cgroup)


def clone_beside(kernel: Kernel, namespace: int, cgroup: int | None, own_pid_namespace: int) -> int:
    """Clone a child of ours into the pid namespace of `namespace` (a pidfd, or its own file).

    setns(2) on a pid namespace changes where *children* are born, so one clone is enough where
    setns in a child of its own would take two; what is changed here is put back at once.
    """
    kernel.setns(namespace, CLONE_NEWPID)
    try:
        pid = kernel.clone(0, cgroup)
    except OSError:
        kernel.setns(own_pid_namespace, CLONE_NEWPID)
        raise
    if pid:
        kernel.setns(own_pid_namespace, CLONE_NEWPID)
    return pid


def _deliver(kernel: Kernel, plan: Plan, fds: Descriptors, theirs: socket.socket) -> NoReturn:
    """The midwife: run what is done outside, make the process, say its pid."""
    status = Status(theirs, fds.listener)
    exit_code = SETUP_FAILED
    try:
        with failing(status) as failure:
            cgroup = [] if fds.cgroup is None else [fds.cgroup]
            high = [fd for fd in fds.stdio if fd > 2]
            status.begin(kernel, [*high, *cgroup, *fds.kept()])
            state = status.state()
            run(plan.outside, kernel, state)
            flags = CLONE_PARENT | (CLONE_NEWPID if plan.new_pid else 0)
            go, say = socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
            pid = kernel.clone(flags, fds.cgroup)
            if pid == 0:
                say.close()
                if go.recv(1):  # nobody outside knows this process before its pid was told
                    go.close()
                    become(kernel, plan.inside, fds.stdio, status, fds.kept(), state)
                os._exit(SETUP_FAILED)
            status.send({"pid": pid})
            say.send(b"!")
        exit_code = failure.exit_code
    finally:
        os._exit(exit_code)
