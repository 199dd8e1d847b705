"""cgroup v2: from the spec's (v1-flavoured) resources to files, and the cgroup's life.

Rules: a container's cgroup is made by PID 1 just before the clone, so that the child is born in it
(a migration would wait for an RCU grace period); the child then writes its own limits. Whoever
asked for the container removes the cgroup. Files: Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wherry_guest.core.spec import Resources, SpecError

if TYPE_CHECKING:
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel

DEFAULT_PERIOD: Final = 100_000
"""Microseconds; the kernel's own default in cpu.max."""

NO_LIMIT: Final = -1


@dataclass(frozen=True, slots=True)
class SetLimit:
    """Write one control file of the container's cgroup."""

    directory: str
    file: str
    value: str

    def describe(self) -> str:
        return f"set {self.file} to {self.value}"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.write(f"{self.directory}/{self.file}", self.value)


def limits(resources: Resources) -> list[tuple[str, str]]:
    """The control files to write, in order.

    Raises:
        SpecError: values that contradict each other.
    """
    files = _memory(resources) + _cpu(resources)
    if resources.cpus:
        files.append(("cpuset.cpus", resources.cpus))
    if resources.mems:
        files.append(("cpuset.mems", resources.mems))
    if resources.pids_limit:
        files.append(("pids.max", _or_max(resources.pids_limit)))
    for name, value in resources.unified:
        if "/" in name or "." not in name or name.startswith("cgroup."):
            raise SpecError(f"linux.resources.unified.{name} is not a controller's file")
        files.append((name, value))
    return files


def cpu_weight(shares: int) -> int:
    """cpu.shares (2 to 262,144) as cpu.weight (1 to 10,000), as runc and systemd scale it."""
    return 1 + (min(max(shares, 2), 262_144) - 2) * 9999 // 262_142


def _memory(resources: Resources) -> list[tuple[str, str]]:
    limit, swap = resources.memory_limit, resources.memory_swap
    files = []
    if limit:
        files.append(("memory.max", _or_max(limit)))
    if resources.memory_reservation:
        files.append(("memory.low", _or_max(resources.memory_reservation)))
    if swap == NO_LIMIT:
        files.append(("memory.swap.max", "max"))
    elif swap:
        if not limit or limit == NO_LIMIT:
            raise SpecError("linux.resources.memory.swap needs memory.limit")
        if swap < limit:
            raise SpecError("linux.resources.memory.swap is below memory.limit")
        files.append(("memory.swap.max", str(swap - limit)))
    return files


def _cpu(resources: Resources) -> list[tuple[str, str]]:
    files = []
    if resources.cpu_shares:
        files.append(("cpu.weight", str(cpu_weight(resources.cpu_shares))))
    if resources.cpu_quota or resources.cpu_period:
        quota = resources.cpu_quota or NO_LIMIT
        files.append(("cpu.max", f"{_or_max(quota)} {resources.cpu_period or DEFAULT_PERIOD}"))
    return files


def _or_max(value: int) -> str:
    return "max" if value == NO_LIMIT else str(value)


# The cgroup's life; these run in PID 1 and in the agent.


def enable_controllers(kernel: Kernel, directory: str) -> None:
    """Give the children of `directory` all controllers that it has itself."""
    fd = kernel.open(f"{directory}/cgroup.controllers", os.O_RDONLY)
    try:
        names = kernel.read(fd, 4096).decode().split()
    finally:
        kernel.close(fd)
    if names:
        text = " ".join(f"+{name}" for name in names)
        kernel.write(f"{directory}/cgroup.subtree_control", text)


def make(kernel: Kernel, root: str, path: str) -> str:
    """Make the cgroup `path` below `root` (which exists); the directory's absolute path.

    Raises:
        ValueError: the path would leave `root`.
        OSError: FileExistsError among others; the cgroups made on the way stay.
    """
    parts = path.split("/")
    if not all(part not in ("", ".", "..") for part in parts):
        raise ValueError(f"cgroup path {path!r}")
    directory = root
    for part in parts[:-1]:
        directory += f"/{part}"
        try:
            kernel.mkdir(directory)
            enable_controllers(kernel, directory)
        except FileExistsError:
            continue
    directory += f"/{parts[-1]}"
    kernel.mkdir(directory)
    return directory


def remove(kernel: Kernel, directory: str) -> bool:
    """Remove an empty cgroup; False while processes are in it. One that is gone is fine."""
    try:
        kernel.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    return True


def kill(kernel: Kernel, directory: str) -> None:
    """SIGKILL to every process in the cgroup and below it (cgroup.kill)."""
    kernel.write(f"{directory}/cgroup.kill", "1")
