"""`update`: other limits for a container that runs; all of them, or as before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from wherry_guest.core.fields import SpecError
from wherry_guest.core.limits import Limit, SetLimit, limits
from wherry_guest.core.resources import Resources, parse_resources
from wherry_guest.core.steps import SetupError, State
from wherry_guest.oci import bundle
from wherry_guest.oci.errors import OciError
from wherry_guest.oci.life import LIVE, require

if TYPE_CHECKING:
    from wherry_guest.oci.context import Context

FLAGS: Final = {
    # flag -> (object, field, whether its value is a number)
    "memory": ("memory", "limit", True),
    "memory-reservation": ("memory", "reservation", True),
    "memory-swap": ("memory", "swap", True),
    "cpu-period": ("cpu", "period", True),
    "cpu-quota": ("cpu", "quota", True),
    "cpu-share": ("cpu", "shares", True),
    "cpu-burst": ("cpu", "burst", True),
    "cpu-idle": ("cpu", "idle", True),
    "cpuset-cpus": ("cpu", "cpus", False),
    "cpuset-mems": ("cpu", "mems", False),
    "pids-limit": ("pids", "limit", True),
    "blkio-weight": ("blockIO", "weight", True),
}
_SUFFIXES: Final = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def from_flags(values: Mapping[str, str]) -> dict[str, Any]:
    """The flags as `linux.resources`; sizes may have a suffix (512M); OciError."""
    resources: dict[str, Any] = {}
    for flag, text in values.items():
        group, field, is_number = FLAGS[flag]
        resources.setdefault(group, {})[field] = _number(flag, text) if is_number else text
    return resources


def from_file(name: str) -> dict[str, Any]:
    """`linux.resources` from a file, or from standard input (`-`); OciError."""
    data = bundle.read_json(Path("/dev/stdin") if name == "-" else Path(name))
    if not isinstance(data, dict):
        raise OciError(f"--resources {name} must hold a JSON object")
    return data


def update(context: Context, id: str, data: Mapping[str, Any]) -> None:
    """Set the limits that `data` names.

    Raises:
        OciError: names the limit that the kernel refuses; the others are as before.
    """
    try:
        resources = parse_resources(data)
        wanted = limits(resources)
    except SpecError as error:
        raise OciError(str(error)) from error
    if resources.devices:
        raise OciError("linux.resources.devices cannot be changed while the container runs")
    with context.store.find(id).lock() as entry:
        require(entry, LIVE, "is not running")
        if entry.record.cgroup is None:
            raise OciError(f"container {id} has no cgroup: there are no limits to change")
        directory = Path(entry.record.cgroup)
        _check_memory(directory, resources)
        _apply(context, directory, wanted)


def _apply(context: Context, directory: Path, wanted: list[Limit]) -> None:
    before: list[Limit] = []
    try:
        for limit in wanted:
            old = _read(directory / limit.file)
            SetLimit(str(directory), limit).execute(context.kernel, State())
            if old:
                before.append(Limit(limit.file, old, limit.field))
    except SetupError as error:
        for limit in reversed(before):
            _restore(context, directory, limit)
        raise OciError(error.message) from error


def _restore(context: Context, directory: Path, limit: Limit) -> None:
    try:
        SetLimit(str(directory), limit).execute(context.kernel, State())
    except SetupError as error:
        context.log.warning(error.message)


def _check_memory(directory: Path, resources: Resources) -> None:
    """memory.checkBeforeUpdate: the kernel would kill what does not fit the new limit."""
    limit = resources.memory_limit
    if not resources.check_before_update or limit is None or limit < 0:
        return
    used = int(_read(directory / "memory.current") or 0)
    if limit < used:
        words = f"{limit} is below the {used} bytes in use (memory.checkBeforeUpdate)"
        raise OciError(f"linux.resources.memory.limit {words}")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""


def _number(flag: str, text: str) -> int:
    value = text.strip().lower().removesuffix("b")
    factor = _SUFFIXES.get(value[-1:], 1)
    digits = value[:-1] if factor > 1 else value
    try:
        return int(digits) * factor
    except ValueError as error:
        raise OciError(f"--{flag} {text!r} is not a number") from error
