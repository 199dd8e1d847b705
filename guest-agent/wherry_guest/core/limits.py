"""From the spec's (v1-flavoured) resources to cgroup v2's control files.

Rules: `limits` is pure; each file knows the field that it comes from, so that a refusal names it.
Order counts where files depend on each other. Files: Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wherry_guest.core.fields import SpecError
from wherry_guest.core.steps import SetupError

if TYPE_CHECKING:
    from wherry_guest.core.resources import Resources
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel

DEFAULT_PERIOD: Final = 100_000
"""Microseconds; the kernel's own default in cpu.max."""

NO_LIMIT: Final = -1


@dataclass(frozen=True, slots=True)
class Limit:
    """One control file.

    Args:
        field: the spec's name for it, below linux.resources.
        instead: (file, value) for a kernel that has not `file`.
        optional: a kernel that has it not does without.
    """

    file: str
    value: str
    field: str
    instead: tuple[str, str] | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class SetLimit:
    """Write one control file of the container's cgroup."""

    directory: str
    limit: Limit

    def describe(self) -> str:
        limit = self.limit
        return f"set {limit.file} to {limit.value} (linux.resources.{limit.field})"

    def execute(self, kernel: Kernel, state: State) -> None:
        limit = self.limit
        try:
            kernel.write(f"{self.directory}/{limit.file}", limit.value)
        except FileNotFoundError as error:
            if limit.instead is not None:
                file, value = limit.instead
                fallback = Limit(file, value, limit.field)
                SetLimit(self.directory, fallback).execute(kernel, state)
            elif not limit.optional:
                controller = limit.file.partition(".")[0]
                words = f"the cgroup has no such file (is there a {controller} controller?)"
                raise SetupError(f"{self.describe()}: {words}", error.errno or 0) from error
        except OSError as error:
            words = os.strerror(error.errno or 0)
            message = f"{self.describe()}: the kernel does not take it: {words}"
            raise SetupError(message, error.errno or 0) from error


def limits(resources: Resources) -> list[Limit]:
    """The control files to write, in order.

    Raises:
        SpecError: values that contradict each other.
    """
    files = _memory(resources) + _cpu(resources)
    if resources.cpus:
        files.append(Limit("cpuset.cpus", resources.cpus, "cpu.cpus"))
    if resources.mems:
        files.append(Limit("cpuset.mems", resources.mems, "cpu.mems"))
    if resources.pids_limit:
        files.append(Limit("pids.max", _or_max(resources.pids_limit), "pids.limit"))
    files += _io(resources) + _hugepages(resources) + _rdma(resources)
    for name, value in resources.unified:
        if "/" in name or "." not in name or name.startswith("cgroup."):
            raise SpecError(f"linux.resources.unified.{name} is not a controller's file")
        files.append(Limit(name, value, f"unified.{name}"))
    return files


def cpu_weight(shares: int) -> int:
    """cpu.shares (2 to 262,144) as cpu.weight (1 to 10,000), as runc and systemd scale it."""
    return 1 + (min(max(shares, 2), 262_144) - 2) * 9999 // 262_142


def io_weight(weight: int) -> int:
    """blkio.weight (10 to 1,000) as io.weight (1 to 10,000), as runc and systemd scale it."""
    return 1 + (min(max(weight, 10), 1000) - 10) * 9999 // 990


def _memory(resources: Resources) -> list[Limit]:
    limit, swap = resources.memory_limit, resources.memory_swap
    files = []
    if limit:
        files.append(Limit("memory.max", _or_max(limit), "memory.limit"))
    if resources.memory_reservation:
        value = _or_max(resources.memory_reservation)
        files.append(Limit("memory.low", value, "memory.reservation"))
    if swap == NO_LIMIT:
        files.append(Limit("memory.swap.max", "max", "memory.swap"))
    elif swap:
        if not limit or limit == NO_LIMIT:
            raise SpecError("linux.resources.memory.swap needs memory.limit")
        if swap < limit:
            raise SpecError("linux.resources.memory.swap is below memory.limit")
        files.append(Limit("memory.swap.max", str(swap - limit), "memory.swap"))
    return files


def _cpu(resources: Resources) -> list[Limit]:
    files = []
    idle = resources.cpu_idle
    if idle == 0:  # an idle cgroup takes no weight: end that first, begin it last
        files.append(Limit("cpu.idle", "0", "cpu.idle"))
    if resources.cpu_shares:
        files.append(Limit("cpu.weight", str(cpu_weight(resources.cpu_shares)), "cpu.shares"))
    if resources.cpu_quota or resources.cpu_period:
        quota = resources.cpu_quota or NO_LIMIT
        value = f"{_or_max(quota)} {resources.cpu_period or DEFAULT_PERIOD}"
        files.append(Limit("cpu.max", value, "cpu.quota" if resources.cpu_quota else "cpu.period"))
    if resources.cpu_burst is not None:
        files.append(Limit("cpu.max.burst", str(resources.cpu_burst), "cpu.burst"))
    if idle:
        files.append(Limit("cpu.idle", str(idle), "cpu.idle"))
    return files


def _io(resources: Resources) -> list[Limit]:
    files = []
    if weight := resources.io_weight:  # the BFQ scheduler's file, or the io controller's own
        instead = ("io.weight", f"default {io_weight(weight)}")
        files.append(Limit("io.bfq.weight", str(weight), "blockIO.weight", instead))
    for major, minor, weight in resources.io_weights:
        device = f"{major}:{minor}"
        instead = ("io.weight", f"{device} {io_weight(weight)}")
        value = f"{device} {weight}"
        files.append(Limit("io.bfq.weight", value, "blockIO.weightDevice", instead))
    for throttle in resources.io_throttles:
        rate = str(throttle.rate) if throttle.rate else "max"
        value = f"{throttle.major}:{throttle.minor} {throttle.key}={rate}"
        files.append(Limit("io.max", value, f"blockIO ({throttle.key})"))
    return files


def _hugepages(resources: Resources) -> list[Limit]:
    files = []
    for size, limit in resources.hugepages:
        field = f"hugepageLimits ({size})"
        files.append(Limit(f"hugetlb.{size}.max", str(limit), field))
        reserved = f"hugetlb.{size}.rsvd.max"  # what is reserved but not touched yet; since 5.7
        files.append(Limit(reserved, str(limit), field, optional=True))
    return files


def _rdma(resources: Resources) -> list[Limit]:
    files = []
    for it in resources.rdma:
        handles = "max" if it.handles is None else it.handles
        objects = "max" if it.objects is None else it.objects
        value = f"{it.device} hca_handle={handles} hca_object={objects}"
        files.append(Limit("rdma.max", value, f"rdma.{it.device}"))
    return files


def _or_max(value: int) -> str:
    return "max" if value == NO_LIMIT else str(value)
