"""`events`: a container's figures, once or again and again, and its OOM kills; runc's JSON lines.

Rules: what the cgroup has no file for is absent; cgroup v2's names are translated to runc's.
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from wherry_guest.oci.errors import OciError
from wherry_guest.oci.life import LIVE, require

if TYPE_CHECKING:
    from wherry_guest.oci.context import Context

_MICRO: Final = 1000  # cpu.stat is in microseconds, runc's figures in nanoseconds

_os: Final[Any] = os
_select: Final[Any] = select


def events(context: Context, id: str, once: bool, interval: float) -> Iterator[str]:
    """JSON lines: the figures every `interval` seconds until the container ends; OciError."""
    entry = context.store.find(id)
    require(entry, LIVE, "is not running")
    if entry.record.cgroup is None:
        raise OciError(f"container {id} has no cgroup: there are no figures")
    directory = Path(entry.record.cgroup)
    if once:
        yield _line("stats", id, figures(directory))
        return
    poller = _select.poll()
    pidfd = _os.pidfd_open(entry.record.pid)
    poller.register(pidfd, _select.POLLIN)
    kills = _flat(directory / "memory.events").get("oom_kill", 0)
    while not poller.poll(interval * 1000):
        yield _line("stats", id, figures(directory))
        now = _flat(directory / "memory.events").get("oom_kill", 0)
        if now > kills:
            yield _line("oom", id, None)
        kills = now
    os.close(pidfd)


def figures(directory: Path) -> dict[str, Any]:
    """What the cgroup's files say, in the shape of runc's `data`."""
    cpu = _flat(directory / "cpu.stat")
    data: dict[str, Any] = {
        "cpu": {
            "usage": {
                "total": cpu.get("usage_usec", 0) * _MICRO,
                "kernel": cpu.get("system_usec", 0) * _MICRO,
                "user": cpu.get("user_usec", 0) * _MICRO,
            },
            "throttling": {
                "periods": cpu.get("nr_periods", 0),
                "throttledPeriods": cpu.get("nr_throttled", 0),
                "throttledTime": cpu.get("throttled_usec", 0) * _MICRO,
            },
        },
    }
    if (directory / "memory.current").exists():
        memory = _flat(directory / "memory.stat")
        data["memory"] = {
            "cache": memory.get("file", 0),
            "usage": _usage(directory, "memory"),
            "swap": _usage(directory, "memory.swap"),
            "raw": memory,
        }
    if (directory / "pids.current").exists():
        data["pids"] = _usage(directory, "pids", used="current", limited="limit", failed=False)
    data["hugetlb"] = {
        path.name.split(".")[1]: _usage(directory, path.name.removesuffix(".current"))
        for path in directory.glob("hugetlb.*.current")
        if ".rsvd." not in path.name
    }
    return data


def _usage(
    directory: Path,
    name: str,
    used: str = "usage",
    limited: str = "limit",
    failed: bool = True,
) -> dict[str, int]:
    result = {used: _number(directory / f"{name}.current")}
    if (limit := _number(directory / f"{name}.max")) >= 0:
        result[limited] = limit
    if failed:
        result["failcnt"] = _flat(directory / f"{name}.events").get("max", 0)
    return result


def _number(path: Path) -> int:
    """The file's number; -1 for `max` and for a file that is not there."""
    try:
        text = path.read_text("utf-8").strip()
    except FileNotFoundError:
        return -1
    return -1 if text == "max" else int(text)


def _flat(path: Path) -> dict[str, int]:
    """A flat-keyed file (`usage_usec 12`); empty when it is not there."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return {}
    return {key: int(value) for key, value in (line.split() for line in text.splitlines())}


def _line(kind: str, id: str, data: object) -> str:
    return json.dumps({"type": kind, "id": id, **({} if data is None else {"data": data})})
