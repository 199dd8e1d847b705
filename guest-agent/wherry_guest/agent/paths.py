"""Where the agent keeps things in the guest, once. Pure.

A path is made when it is first asked for, and kept: making one costs more than many a system call.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class ContainerPaths:
    """The files of one container: `data` is on the data disk, `run` is gone with the machine."""

    data: Path
    run: Path
    cgroup: Path

    @cached_property
    def upper(self) -> Path:
        return self.data / "upper"

    @cached_property
    def work(self) -> Path:
        return self.data / "work"

    @cached_property
    def log(self) -> Path:
        """The directory of the log."""
        return self.data / "log"

    @cached_property
    def exit(self) -> Path:
        """The last exit, as in the event."""
        return self.data / "exit.json"

    @cached_property
    def state(self) -> Path:
        return self.run / "state.json"

    @cached_property
    def request(self) -> Path:
        """What a restart policy starts again: the parameters of `container.start`."""
        return self.run / "request.json"

    @cached_property
    def health(self) -> Path:
        return self.run / "health.json"

    @cached_property
    def shm(self) -> Path:
        """A /dev/shm that other containers may join is mounted here."""
        return self.run / "shm"

    @cached_property
    def memory_events(self) -> Path:
        return self.cgroup / "memory.events"


@dataclass(frozen=True)
class Paths:
    """The roots: `run` (tmpfs), `data` (the data disk), `cgroups` (made by PID 1)."""

    run: Path = Path("/run/wherry")
    data: Path = Path("/var/lib/wherry")
    cgroups: Path = Path("/sys/fs/cgroup/containers")

    @cached_property
    def ssh_cgroup(self) -> Path:
        """What people run in the machine itself."""
        return self.cgroups.parent / "ssh"

    @cached_property
    def setup(self) -> Path:
        """The answer of this boot's `system.setup`."""
        return self.run / "setup.json"

    @cached_property
    def execs(self) -> Path:
        return self.run / "execs"

    @cached_property
    def layers(self) -> Path:
        """The layers' mount points."""
        return self.run / "l"

    @cached_property
    def containers(self) -> Path:
        return self.data / "containers"

    @cached_property
    def volumes(self) -> Path:
        return self.data / "volumes"

    @cached_property
    def trash(self) -> Path:
        """What is being deleted; on the data disk, so that getting there is one rename."""
        return self.data / "trash"

    def container(self, id: str) -> ContainerPaths:
        """`id` must be a checked name."""
        return ContainerPaths(self.containers / id, self.run / "c" / id, self.cgroups / id)

    def volume(self, name: str) -> Path:
        """`name` must be a checked name."""
        return self.volumes / name
