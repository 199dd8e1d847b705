"""What the engine knows of itself, its machine and their sizes: `docker info` and `docker version`.

The guest's facts are asked for once per connection and kept: reading them here never waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wherry import __version__
from wherry.engine.model import Container, Json, Status
from wherry.osutil import cpu_count, total_memory
from wherry.osutil.host import processor

_LINUX_NAMES = {"arm64": "aarch64", "amd64": "x86_64"}

_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
_DOCKER_ARCHITECTURES = {
    "x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """From the agent's `system.info`; empty and zero while no machine was seen."""

    kernel: str = ""
    arch: str = ""
    memory_bytes: int = 0
    cpus: int = 0
    variant: str = ""
    agent: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_info(cls, info: Mapping[str, Any]) -> GuestFacts:
        """What is of the wrong type counts as not told: the guest is not trusted."""
        agent = info.get("agent")
        return cls(
            kernel=_text(info.get("kernel")),
            arch=_text(info.get("arch")),
            memory_bytes=_count(info.get("memory_bytes")),
            cpus=_count(info.get("cpus")),
            variant=_text(info.get("variant")),
            agent=agent if isinstance(agent, dict) else {},
        )


def version_facts(guest: GuestFacts) -> Json:
    """Version, KernelVersion, Os and Arch (amd64, arm64)."""
    return {
        "Version": __version__,
        "KernelVersion": guest.kernel,
        "Os": "linux",
        "Arch": _DOCKER_ARCHITECTURES.get(guest_machine(guest), guest_machine(guest)),
    }


def info_facts(
    guest: GuestFacts, machine_name: str, home: str, containers: list[Container], images: int
) -> Json:
    """The part of `GET /info` that is not constant."""
    paused = sum(container.status is Status.PAUSED for container in containers)
    running = sum(container.running for container in containers) - paused
    arch = guest_machine(guest)
    return {
        "ID": machine_name,
        "Name": machine_name,
        "Containers": len(containers),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": len(containers) - running - paused,
        "Images": images,
        "ServerVersion": __version__,
        "KernelVersion": guest.kernel,
        "OperatingSystem": "Wherry",
        "OSVersion": __version__,
        "Architecture": _ARCHITECTURES.get(arch, arch),
        "NCPU": guest.cpus or cpu_count(),
        "MemTotal": guest.memory_bytes or total_memory(),
        "DockerRootDir": home,
        "SystemTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def engine_facts(machine_name: str, home: str, started_ns: int, guest: GuestFacts) -> Json:
    """The engine process itself: pid, version, machine, home, started_ns, agent."""
    return {
        "pid": os.getpid(),
        "version": __version__,
        "machine": machine_name,
        "home": home,
        "started_ns": started_ns,
        "agent": dict(guest.agent),
    }


def guest_machine(guest: GuestFacts) -> str:
    """The guest's architecture, by default the host's (a machine's is the host's unless chosen), in
    Linux's words: what macOS calls arm64 is aarch64 there, what Windows calls amd64 is x86_64."""
    name = processor()
    return guest.arch or _LINUX_NAMES.get(name, name)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
