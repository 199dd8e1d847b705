"""Figures of containers and of this machine, as the kernel gives them.

Rule: the guest only reads. The texts of cgroup files and of /proc go to the host, which makes sense
of them: twenty clients that stream statistics cost one call with twenty containers' texts a second.
Files: Documentation/admin-guide/cgroup-v2.rst, Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from wherry_guest.agent.container import Container

_os: Final[Any] = os

CGROUP_FILES: Final = (
    "cpu.stat", "memory.current", "memory.max", "memory.stat", "memory.events", "pids.current",
    "pids.max", "io.stat",
)  # fmt: skip
PRESSURE_FILES: Final = ("cpu.pressure", "memory.pressure", "io.pressure")

_READ: Final = 64 * 1024


def sample(containers: Iterable[Container], pressure: bool) -> dict[str, Any]:
    """The result of `container.stats`. A file that the kernel does not have is left out."""
    names = CGROUP_FILES + PRESSURE_FILES if pressure else CGROUP_FILES
    samples = []
    for container in containers:
        cgroup = os.fspath(container.paths.cgroup)
        texts = {name: _text(f"{cgroup}/{name}") for name in names}
        samples.append(
            {
                "id": container.id,
                "time_ns": time.time_ns(),
                "files": {name: text for name, text in texts.items() if text is not None},
                "net_dev": _text(f"/proc/{container.pid}/net/dev") or "",
            }
        )
    stat = _text("/proc/stat") or ""
    return {
        "samples": samples,
        "cpu": stat.partition("\n")[0],
        "clock_ticks": _os.sysconf("SC_CLK_TCK"),
        "cpus": os.cpu_count(),
        "memory_bytes": _os.sysconf("SC_PHYS_PAGES") * _os.sysconf("SC_PAGE_SIZE"),
    }


def processes(cgroup: Path) -> dict[str, Any]:
    """The result of `container.top`: what /proc says of each process in the cgroup."""
    found = []
    for directory, _, _ in os.walk(cgroup):
        for pid in (_text(f"{directory}/cgroup.procs") or "").split():
            stat, status = _text(f"/proc/{pid}/stat"), _text(f"/proc/{pid}/status")
            command = _text(f"/proc/{pid}/cmdline")
            if stat is None or status is None or command is None:
                continue  # it has just ended
            found.append({"pid": int(pid), "stat": stat, "status": status, "cmdline": command})
    return {
        "processes": sorted(found, key=lambda process: process["pid"]),
        "clock_ticks": _os.sysconf("SC_CLK_TCK"),
        "page_size": _os.sysconf("SC_PAGE_SIZE"),
        "memory_bytes": _os.sysconf("SC_PHYS_PAGES") * _os.sysconf("SC_PAGE_SIZE"),
        "uptime_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),  # type: ignore[attr-defined,unused-ignore]  # Linux
        "time_ns": time.time_ns(),
    }


def machine(cgroups: Path) -> dict[str, Any]:
    """What must not grow while containers come and go: counts, and the memory of ours.

    Bytes; `pss` is a process's share of the memory that it uses, swapped out or not.
    """
    return {
        "mounts": len((_text("/proc/self/mountinfo") or "").splitlines()),
        "cgroups": sum(1 for _ in os.walk(cgroups)),
        "agent": _process("self"),
        "pid1": _process("1"),
    }


def _process(pid: str) -> dict[str, Any]:
    rollup = {"rss_bytes": 0, "pss_bytes": 0}
    for line in (_text(f"/proc/{pid}/smaps_rollup") or "").splitlines():
        name, _, value = line.partition(":")
        if name in ("Rss", "Pss", "Swap", "SwapPss"):
            key = "pss_bytes" if name.endswith("Pss") else "rss_bytes"
            rollup[key] += int(value.split()[0]) * 1024
    descriptors = sum(1 for _ in Path("/proc", pid, "fd").iterdir())
    return {"descriptors": descriptors, **rollup}


def _text(path: str) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | _os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(fd, _READ)
        while data and (more := os.read(fd, _READ)):
            data += more
    except OSError:
        return None  # the process has ended, or the cgroup is gone
    finally:
        os.close(fd)
    return data.decode("utf-8", "replace")
