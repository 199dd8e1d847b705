"""A cgroup's life: made, given controllers, emptied, removed. What limits it has: `core.limits`.

Rules: a container's cgroup is made by PID 1 just before the clone, so that the child is born in it
(a migration would wait for an RCU grace period); the child then writes its own limits. Whoever
asked for the container removes the cgroup. Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wherry_guest.core.syscalls import Kernel


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


def is_empty(kernel: Kernel, directory: str) -> bool:
    """Whether no process is in it."""
    fd = kernel.open(f"{directory}/cgroup.procs", os.O_RDONLY)
    try:
        return not kernel.read(fd, 64)
    finally:
        kernel.close(fd)


def kill(kernel: Kernel, directory: str) -> None:
    """SIGKILL to every process in the cgroup and below it (cgroup.kill)."""
    kernel.write(f"{directory}/cgroup.kill", "1")
