"""Statistics as Docker's JSON. Pure.

The figures are those of the reference engine on cgroup v2 (moby: daemon/stats_unix.go). What it has
no place for (pressure, memory events) stands under `wherry`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wherry.api.timefmt import ZERO_TIME, rfc3339

if TYPE_CHECKING:
    from wherry.engine.model import Container
    from wherry.engine.stats import Sample

_US = 1000
_UNLIMITED = 2**64 - 1

Json = dict[str, Any]


def empty_stats(container: Container) -> Json:
    """What Docker answers for a container that does not run."""
    return {
        "id": container.id,
        "name": f"/{container.name}",
        "read": ZERO_TIME,
        "preread": ZERO_TIME,
        "pids_stats": {},
        "blkio_stats": _blkio({}),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": _no_cpu(),
        "precpu_stats": _no_cpu(),
        "memory_stats": {},
    }


def docker_stats(container: Container, sample: Sample, before: Sample | None) -> Json:
    """`sample` as Docker's object; `before`: the one that the client got last."""
    files = sample.files
    shape = {
        "id": container.id,
        "name": f"/{container.name}",
        "read": rfc3339(sample.time_ns),
        "preread": rfc3339(before.time_ns) if before is not None else ZERO_TIME,
        "pids_stats": {
            "current": _number(files.get("pids.current")),
            "limit": _limit(files.get("pids.max"), _UNLIMITED),
        },
        "blkio_stats": _blkio(files),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": _cpu(sample),
        "precpu_stats": _cpu(before) if before is not None else _no_cpu(),
        "memory_stats": _memory(sample),
        "wherry": {
            "memory_events": _pairs(files.get("memory.events", "")),
            "pressure": {
                kind: _pressure(files[f"{kind}.pressure"])
                for kind in ("cpu", "memory", "io")
                if f"{kind}.pressure" in files
            },
        },
    }
    if sample.networks and container.host_config.get("NetworkMode") != "host":
        shape["networks"] = {key: dict(value) for key, value in sample.networks.items()}
    return shape


def _cpu(sample: Sample) -> Json:
    stat = _pairs(sample.files.get("cpu.stat", ""))
    return {
        "cpu_usage": {
            "total_usage": stat.get("usage_usec", 0) * _US,
            "usage_in_kernelmode": stat.get("system_usec", 0) * _US,
            "usage_in_usermode": stat.get("user_usec", 0) * _US,
        },
        "system_cpu_usage": sample.system_ns,
        "online_cpus": sample.cpus,
        "throttling_data": {
            "periods": stat.get("nr_periods", 0),
            "throttled_periods": stat.get("nr_throttled", 0),
            "throttled_time": stat.get("throttled_usec", 0) * _US,
        },
    }


def _no_cpu() -> Json:
    return {
        "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
        "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
    }


def _memory(sample: Sample) -> Json:
    """`usage` as the kernel has it: clients subtract `inactive_file` themselves."""
    files = sample.files
    return {
        "usage": _number(files.get("memory.current")),
        "stats": _pairs(files.get("memory.stat", "")),
        "limit": min(
            _limit(files.get("memory.max"), sample.memory_bytes), sample.memory_bytes or _UNLIMITED
        ),
    }


def _blkio(files: Mapping[str, str]) -> Json:
    """io.stat: "MAJ:MIN rbytes=… wbytes=… rios=… wios=…" a line."""
    amounts, counts = [], []
    for line in files.get("io.stat", "").splitlines():
        device, *words = line.split()
        major, _, minor = device.partition(":")
        values = dict(word.partition("=")[::2] for word in words)
        for operation, size, number in (("read", "rbytes", "rios"), ("write", "wbytes", "wios")):
            entry = {"major": int(major), "minor": int(minor), "op": operation}
            amounts.append({**entry, "value": int(values.get(size, 0))})
            counts.append({**entry, "value": int(values.get(number, 0))})
    return {
        "io_service_bytes_recursive": amounts or None,
        "io_serviced_recursive": counts or None,
        "io_queue_recursive": None,
        "io_service_time_recursive": None,
        "io_wait_time_recursive": None,
        "io_merged_recursive": None,
        "io_time_recursive": None,
        "sectors_recursive": None,
    }


def _pressure(text: str) -> Json:
    """Lines of `some avg10=0.00 avg60=… avg300=… total=0` (Documentation/accounting/psi.rst)."""
    result: Json = {}
    for line in text.splitlines():
        kind, *words = line.split()
        values = dict(word.partition("=")[::2] for word in words)
        result[kind] = {
            name: int(value) if name == "total" else float(value) for name, value in values.items()
        }
    return result


def _pairs(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


def _number(text: str | None) -> int:
    return int(text) if text else 0


def _limit(text: str | None, unlimited: int) -> int:
    return unlimited if not text or text.strip() == "max" else int(text)
