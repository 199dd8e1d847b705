"""From a plan to a flat program: what each step does, said in system calls.

Rules: pure. A program does what the steps' `execute` does, or it fails: what is out of the ordinary
(a link on the path of a mount point, an error that a step would put in words) is left to the steps,
who begin afresh in a process of their own. So a program may fail too often, but must never go on
where a step would not. It keeps no descriptor of a directory of the machine's once the container's
root is entered: paths of the image are walked from there on, and may lead through /proc/self/fd.

The cradle runs it, as itself up to the clone; then the process goes one way, and the cradle says
its pid and is ready for the next. What is said to PID 1: `core.cradle`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from wherry_guest.core import flat_mounts, flat_process, flat_user
from wherry_guest.core.flat import BASE, Flat, Image, Label, NotFlat
from wherry_guest.core.flat_making import (
    FIRST,
    MSG_NOSIGNAL,
    O_RDONLY,
    O_RDWR,
    Descriptors,
    Making,
)
from wherry_guest.core.process import Execute
from wherry_guest.core.steps import SETUP_FAILED
from wherry_guest.core.syscalls import (
    CLONE_INTO_CGROUP,
    CLONE_NEWNET,
    CLONE_NEWPID,
    CLONE_PARENT,
    PR_SET_DUMPABLE,
)

if TYPE_CHECKING:
    from wherry_guest.core.plan import Plan
    from wherry_guest.core.steps import Step

CONTROL: Final = 3
"""The cradle's descriptor for its maker."""

FAILURE_BYTES: Final = 16
"""What is said of a failure: errno, and the operation's address, 64 bits each."""

PID_BYTES: Final = 8

_CLONE_ARGS: Final = 88  # CLONE_ARGS_SIZE_VER2, uapi/linux/sched.h
_STEPS: Final[Mapping[type, Callable[[Making, Any], None]]] = {
    **flat_mounts.STEPS,
    **flat_process.STEPS,
    **flat_user.STEPS,
}


@dataclass(frozen=True, slots=True)
class Flattened:
    """A plan as a program, and the values of the program's variables."""

    image: Image
    variables: tuple[str, ...]


def flatten(plan: Plan, fds: Descriptors, architecture: str) -> Flattened:
    """The program that makes a process of this plan.

    Raises:
        NotFlat: the plan has what cannot be said.
    """
    if plan.outside or plan.pid_namespace is not None:
        raise NotFlat("the process needs a midwife")
    flat = Flat(architecture)
    making = Making(flat, architecture, fds, has_home=_has_home(plan.inside))
    failed, parent, child_failed = Label(), Label(), Label()
    flat.handler(failed)
    if fds.pidfd >= 0:
        flat.call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)  # before the container can see the child
        flat.call("setns", fds.pidfd, CLONE_NEWPID)
    flags = CLONE_PARENT | CLONE_INTO_CGROUP | (CLONE_NEWPID if plan.new_pid else 0)
    arguments = struct.pack("<11Q", flags, *[0] * 9, fds.cgroup)  # struct clone_args
    pid = flat.keep(flat.call("clone3", flat.data(arguments), _CLONE_ARGS))
    flat.check(pid, 0xFFFFFFFF, 0, parent)
    flat.handler(child_failed)
    _begin(making)
    for step in plan.inside:
        _add(making, step)
    flat.place(child_failed)
    flat.call("sendto", fds.status, BASE, FAILURE_BYTES, MSG_NOSIGNAL, 0, 0)
    flat.call("exit_group", SETUP_FAILED)
    flat.place(parent)
    flat.handler(None)  # who cannot say that there is a process must not say that there is none
    _go_home(making)
    flat.call("sendto", CONTROL, pid, PID_BYTES, MSG_NOSIGNAL, 0, 0)
    flat.end()
    flat.place(failed)
    _go_home(making)
    flat.call("sendto", CONTROL, BASE, FAILURE_BYTES, MSG_NOSIGNAL, 0, 0)
    flat.end()
    return Flattened(flat.image(), tuple(making.variables))


def burial(architecture: str) -> bytes:
    """The program of a process that holds a descriptor until the other one, a socket, ends."""
    flat = Flat(architecture)
    failed, parent = Label(), Label()
    held, leash = FIRST, FIRST + 1
    flat.handler(failed)
    arguments = struct.pack("<11Q", CLONE_PARENT, *[0] * 10)  # struct clone_args
    pid = flat.keep(flat.call("clone3", flat.data(arguments), _CLONE_ARGS))
    flat.handler(None)
    flat.check(pid, 0xFFFFFFFF, 0, parent)
    flat.call("close", CONTROL)
    flat.call("recvfrom", leash, flat.scratch(8), 8, 0, 0, 0)
    flat.call("exit_group", 0)
    flat.place(parent)
    flat.call("close", held)  # or it would end with the cradle's
    flat.call("sendto", CONTROL, pid, PID_BYTES, MSG_NOSIGNAL, 0, 0)
    flat.end()
    flat.place(failed)
    flat.call("sendto", CONTROL, BASE, FAILURE_BYTES, MSG_NOSIGNAL, 0, 0)
    flat.end()
    return flat.image().memory


def spare_network(architecture: str) -> bytes:
    """The program of a process that makes a network namespace, sends it, and ends."""
    flat = Flat(architecture)
    making = Making(flat, architecture, Descriptors((), status=FIRST, cgroup=-1))
    failed, parent, ended = Label(), Label(), Label()
    flat.handler(failed)
    arguments = struct.pack("<11Q", CLONE_PARENT, *[0] * 10)  # struct clone_args
    pid = flat.keep(flat.call("clone3", flat.data(arguments), _CLONE_ARGS))
    flat.handler(None)
    flat.check(pid, 0xFFFFFFFF, 0, parent)
    flat.handler(ended)
    making.close(CONTROL)
    flat.call("unshare", CLONE_NEWNET)
    flat_mounts.set_loopback_up(making)
    making.send_descriptor(making.open(flat.text("/proc/self/ns/net"), O_RDONLY), b"network")
    flat.place(ended)
    flat.call("exit_group", 0)
    flat.place(parent)
    flat.call("sendto", CONTROL, pid, PID_BYTES, MSG_NOSIGNAL, 0, 0)
    flat.end()
    flat.place(failed)
    flat.call("sendto", CONTROL, BASE, FAILURE_BYTES, MSG_NOSIGNAL, 0, 0)
    flat.end()
    return flat.image().memory


def _add(making: Making, step: Step) -> None:
    add = _STEPS.get(type(step))
    if add is None:
        raise NotFlat(step.describe())
    add(making, step)


def _has_home(steps: Sequence[Step]) -> bool:
    last = steps[-1]
    return isinstance(last, Execute) and any(entry.startswith("HOME=") for entry in last.env)


def _begin(making: Making) -> None:
    """Take stdio, let go of what is the cradle's."""
    fds, flat = making.fds, making.flat
    making.close(CONTROL)
    if fds.stdio:
        for target, fd in enumerate(fds.stdio):
            flat.call("dup3", fd, target, 0)
            making.close(fd)
        return
    null = making.open(flat.text("/dev/null"), O_RDWR)
    for target in (0, 1, 2):
        flat.call("dup3", null, target, 0)
    making.close(null)


def _go_home(making: Making) -> None:
    """The cradle's next children are born in its own pid namespace again."""
    if making.fds.pidfd >= 0:
        own = making.open(making.flat.text("/proc/self/ns/pid"), O_RDONLY)
        making.flat.call("setns", own, CLONE_NEWPID)
        making.close(own)
