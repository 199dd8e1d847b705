"""Namespaces: making new ones, joining others, and the names that live in them.

The pid namespace is not here: it is made (or joined) by the clone that makes the child, because a
process cannot change its own.
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
    "uts": CLONE_NEWUTS,
}


@dataclass(frozen=True, slots=True)
class JoinNamespace:
    """Enter the namespace that stands at `path` (/proc/PID/ns/net)."""

    kind: str
    path: str

    def describe(self) -> str:
        return f"join the {self.kind} namespace {self.path}"

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
class JoinContainer:
    """Enter all namespaces (but pid: the clone did that) of the process behind a pidfd."""

    pidfd: int

    def describe(self) -> str:
        return "join the container's namespaces"

    def execute(self, kernel: Kernel, state: State) -> None:
        # The container's processes see this one from now on, and must not look into it while it
        # still holds the VM's memory and descriptors.
        kernel.prctl(PR_SET_DUMPABLE, 0)
        kernel.setns(self.pidfd, sum(FLAGS.values()))
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
