"""`linux.resources` as frozen values, in the spec's (cgroup v1's) terms; `core.limits` makes files.

Rules: pure. What cgroup v2 has no file for is refused by name, unless it is at its default.
https://github.com/opencontainers/runtime-spec/blob/v1.2.0/config-linux.md#control-groups
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from wherry_guest.core.fields import Fields, SpecError

_PAGE_SIZE: Final = re.compile(r"[1-9][0-9]*[KMG]B")
_THROTTLES: Final = {
    # the spec's name -> the key in io.max; Documentation/admin-guide/cgroup-v2.rst
    "throttleReadBpsDevice": "rbps",
    "throttleWriteBpsDevice": "wbps",
    "throttleReadIOPSDevice": "riops",
    "throttleWriteIOPSDevice": "wiops",
}
_V1_MEMORY: Final = ("kernel", "kernelTCP", "swappiness", "disableOOMKiller")


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """`devices[]`: type a, b or c; None: every number."""

    allow: bool
    type: str
    major: int | None
    minor: int | None
    access: str


@dataclass(frozen=True, slots=True)
class IoThrottle:
    """`blockIO.throttle…Device[]`: `key` is io.max's (rbps, wbps, riops, wiops)."""

    key: str
    major: int
    minor: int
    rate: int


@dataclass(frozen=True, slots=True)
class RdmaLimit:
    """`rdma.DEVICE`; None: no limit."""

    device: str
    handles: int | None
    objects: int | None


@dataclass(frozen=True, slots=True)
class Resources:
    """`linux.resources`; bytes; -1: no limit, None: unset.

    Args:
        io_weights: (major, minor, weight) of single devices.
        hugepages: (page size, bytes): ("2MB", 4194304).
        check_before_update: refuse a memory limit below what is in use.
    """

    memory_limit: int | None = None
    memory_reservation: int | None = None
    memory_swap: int | None = None
    check_before_update: bool = False
    cpu_shares: int | None = None
    cpu_quota: int | None = None
    cpu_period: int | None = None
    cpu_burst: int | None = None
    cpu_idle: int | None = None
    cpus: str = ""
    mems: str = ""
    pids_limit: int | None = None
    io_weight: int | None = None
    io_weights: tuple[tuple[int, int, int], ...] = ()
    io_throttles: tuple[IoThrottle, ...] = ()
    hugepages: tuple[tuple[str, int], ...] = ()
    rdma: tuple[RdmaLimit, ...] = ()
    devices: tuple[DeviceRule, ...] = ()
    unified: tuple[tuple[str, str], ...] = ()


def parse_resources(data: Mapping[str, Any]) -> Resources:
    """The JSON object `linux.resources` by itself; SpecError."""
    return read_resources(Fields(data, "linux.resources"))


def read_resources(resources: Fields) -> Resources:
    """The object `linux.resources`; SpecError."""
    groups = ("memory", "cpu", "pids", "blockIO")
    memory, cpu, pids, io = (resources.object(name) for name in groups)
    memory.get("useHierarchy", bool, True)  # as cgroup v2 always has it
    for name in _V1_MEMORY:
        memory.refuse_unless_default(name, "cgroup v2 has no such limit")
    for name in ("realtimeRuntime", "realtimePeriod"):
        cpu.refuse_unless_default(name, "cgroup v2 has no such limit")
    io.refuse_unless_default("leafWeight", "cgroup v2 has no such weight")
    resources.refuse_unless_default("network", "cgroup v2 has no network controller")
    parsed = Resources(
        memory_limit=memory.optional("limit"),
        memory_reservation=memory.optional("reservation"),
        memory_swap=memory.optional("swap"),
        check_before_update=memory.get("checkBeforeUpdate", bool, False),
        cpu_shares=cpu.optional("shares"),
        cpu_quota=cpu.optional("quota"),
        cpu_period=cpu.optional("period"),
        cpu_burst=cpu.optional("burst"),
        cpu_idle=cpu.optional("idle"),
        cpus=cpu.get("cpus", str, ""),
        mems=cpu.get("mems", str, ""),
        pids_limit=pids.optional("limit"),
        io_weight=io.optional("weight"),
        io_weights=tuple(_parse_weight(item) for item in io.objects("weightDevice")),
        io_throttles=tuple(
            _parse_throttle(item, key)
            for field, key in _THROTTLES.items()
            for item in io.objects(field)
        ),
        hugepages=tuple(_parse_hugepages(item) for item in resources.objects("hugepageLimits")),
        rdma=tuple(_parse_rdma(item, name) for name, item in resources.members("rdma")),
        devices=tuple(_parse_device_rule(item) for item in resources.objects("devices")),
        unified=resources.pairs("unified"),
    )
    for item in (memory, cpu, pids, io, resources):
        item.finish()
    return parsed


def _parse_device_rule(item: Fields) -> DeviceRule:
    kind = item.get("type", str, "") or "a"
    access = item.get("access", str, "") or "rwm"
    if kind not in ("a", "b", "c") or not set(access) <= set("rwm"):
        raise SpecError(f"{item.name('type')} {kind!r} with access {access!r} is not a device rule")
    numbers = [item.optional(name) for name in ("major", "minor")]
    major, minor = (None if number in (None, -1) else number for number in numbers)
    parsed = DeviceRule(item.get("allow", bool, False), kind, major, minor, access)
    item.finish()
    return parsed


def _parse_weight(item: Fields) -> tuple[int, int, int]:
    item.refuse_unless_default("leafWeight", "cgroup v2 has no such weight")
    parsed = (item.integer("major", 0), item.integer("minor", 0), item.integer("weight", 0))
    item.finish()
    return parsed


def _parse_throttle(item: Fields, key: str) -> IoThrottle:
    major, minor = item.integer("major", 0), item.integer("minor", 0)
    parsed = IoThrottle(key, major, minor, item.integer("rate", 0, 0))
    item.finish()
    return parsed


def _parse_hugepages(item: Fields) -> tuple[str, int]:
    size = item.get("pageSize", str, "")
    if not _PAGE_SIZE.fullmatch(size):
        raise SpecError(f"{item.name('pageSize')} {size!r} is not a size such as 2MB")
    parsed = (size, item.integer("limit", 0, 0))
    item.finish()
    return parsed


def _parse_rdma(item: Fields, device: str) -> RdmaLimit:
    if not device or device != "".join(device.split()):
        raise SpecError(f"{item.path} is not the name of a device")
    parsed = RdmaLimit(device, item.optional("hcaHandles"), item.optional("hcaObjects"))
    item.finish()
    return parsed
