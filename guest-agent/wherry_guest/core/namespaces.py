"""Namespaces: making new ones, joining others, and the names that live in them.

A new pid namespace is made by the clone that makes the child, because a process cannot change its
own; so is what a new time namespace needs. Joining either changes where *children* are born.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wherry_guest.core.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    PR_SET_DUMPABLE,
)

if TYPE_CHECKING:
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel

FLAGS: Final = {
    "cgroup": CLONE_NEWCGROUP,
    "ipc": CLONE_NEWIPC,
    "mount": CLONE_NEWNS,
    "network": CLONE_NEWNET,
    "pid": CLONE_NEWPID,
    "time": CLONE_NEWTIME,
    "user": CLONE_NEWUSER,
    "uts": CLONE_NEWUTS,
}
BY_UNSHARE: Final = frozenset({"cgroup", "ipc", "mount", "network", "uts"})
"""What a process can leave for new ones at any time."""

TIME_OFFSETS: Final = "/proc/self/timens_offsets"
"""time_namespaces(7)"""


@dataclass(frozen=True, slots=True)
class JoinNamespace:
    """Enter the namespace that stands at `path` (/proc/PID/ns/net)."""

    kind: str
    path: str

    def describe(self) -> str:
        return f"join the {self.kind} namespace {self.path} (linux.namespaces)"

    def execute(self, kernel: Kernel, state: State) -> None:
        fd = kernel.open(self.path, os.O_RDONLY)
        kernel.setns(fd, FLAGS[self.kind])
        kernel.close(fd)


@dataclass(frozen=True, slots=True)
class NewNamespaces:
    """Leave the present namespaces of these kinds for new ones."""

    kinds: tuple[str, ...]

    def describe(self) -> str:
        return f"make new namespaces: {', '.join(self.kinds)}"

    def execute(self, kernel: Kernel, state: State) -> None:
        flags = 0
        for kind in self.kinds:
            flags |= FLAGS[kind]
        kernel.unshare(flags)


@dataclass(frozen=True, slots=True)
class NewTimeNamespace:
    """Let children be born in a new time namespace with these offsets."""

    offsets: tuple[tuple[str, int, int], ...]

    def describe(self) -> str:
        return "make a time namespace (linux.timeOffsets)"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.unshare(CLONE_NEWTIME)
        if self.offsets:
            lines = (f"{clock} {secs} {nanosecs}\n" for clock, secs, nanosecs in self.offsets)
            kernel.write(TIME_OFFSETS, "".join(lines))


@dataclass(frozen=True, slots=True)
class HideMemory:
    """Let nobody in the container look into this process, which still has the runtime's memory.

    The exec ends it.
    """

    def describe(self) -> str:
        return "hide this process's memory"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.prctl(PR_SET_DUMPABLE, 0)


@dataclass(frozen=True, slots=True)
class JoinContainer:
    """Enter the namespaces (but pid: the clone did that) of the process behind a pidfd.

    Args:
        user: its user namespace too; the kernel refuses to join one's own.
    """

    pidfd: int
    user: bool = False

    def describe(self) -> str:
        return "join the container's namespaces"

    def execute(self, kernel: Kernel, state: State) -> None:
        flags = sum(FLAGS[kind] for kind in BY_UNSHARE) | CLONE_NEWTIME
        kernel.setns(self.pidfd, flags | (CLONE_NEWUSER if self.user else 0))
        kernel.close(self.pidfd)


@dataclass(frozen=True, slots=True)
class SetHostname:
    name: str

    def describe(self) -> str:
        return f"set the host name to {self.name}"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.sethostname(self.name)


@dataclass(frozen=True, slots=True)
class SetDomainname:
    name: str

    def describe(self) -> str:
        return f"set the domain name to {self.name}"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.setdomainname(self.name)
