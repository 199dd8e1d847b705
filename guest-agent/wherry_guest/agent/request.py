"""A start request, checked: what `container.start` carries, and what of it outlives the start.

Rule: what is wrong is `invalid` and named before anything happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from wherry_guest.agent.calls import Params
from wherry_guest.agent.health import Check
from wherry_guest.agent.logfile import UNLIMITED, Limits
from wherry_guest.agent.restart import Policy
from wherry_guest.channel import CallError

FILES: Final = ("hosts", "hostname", "resolv.conf")

BLOCK_IO: Final = {
    "weightDevice": "weight",
    "throttleReadBpsDevice": "rate",
    "throttleWriteBpsDevice": "rate",
    "throttleReadIOPSDevice": "rate",
    "throttleWriteIOPSDevice": "rate",
}
"""Lists in `linux.resources.blockIO` of limits of single devices: how their number is called."""

FILE, NONE = "file", "none"
"""Where output goes: to a log on the data disk, or to whoever is attached and nowhere else."""


@dataclass(frozen=True, slots=True)
class Options:
    """What of a start request is needed while the container runs."""

    tty: bool
    open_stdin: bool
    stdin_once: bool
    lowerdirs: tuple[str, ...]
    driver: str = FILE
    limits: Limits = UNLIMITED
    emulated: bool = False
    buffer: int = 0

    def as_json(self) -> dict[str, Any]:
        """As it is kept for a new agent."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return {**plain, "limits": {it: getattr(self.limits, it) for it in Limits.__slots__}}


@dataclass(frozen=True, slots=True)
class Request:
    """A start. `params` is the call's, for a start that repeats it.

    `devices` have path (in the machine), target (in the container) and permissions (of `rwm`);
    `block_io` path (in the machine), limit (a list in `linux.resources.blockIO`) and value.
    `emulated`: its programs are of another architecture. `buffer`: bytes of output that memory
    takes while the disk is full; 0: the container waits.
    """

    id: str
    spec: dict[str, Any]
    layers: list[str]
    tty: bool
    open_stdin: bool
    stdin_once: bool
    files: dict[str, str]
    files_of: str | None
    devices: list[dict[str, str]]
    all_devices: bool
    block_io: list[dict[str, Any]]
    size: tuple[int, int] | None
    driver: str
    limits: Limits
    buffer: int
    reader_expected: bool
    emulated: bool
    policy: Policy
    check: Check | None
    params: Mapping[str, Any] = field(repr=False)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Request:
        """Raises CallError `invalid`."""
        params = Params(values)
        files = params.optional_mapping("files") or {}
        for name, text in files.items():
            if name not in FILES or not isinstance(text, str):
                raise CallError("invalid", f"files may hold the texts of {', '.join(FILES)}")
        driver, limits, buffer = _read_log(params.optional_mapping("log"))
        return cls(
            id=params.identifier("id"),
            spec=params.mapping("spec"),
            layers=params.items("layers", str),
            tty=params.flag("tty"),
            open_stdin=params.flag("open_stdin"),
            stdin_once=params.flag("stdin_once"),
            files=files,
            files_of=params.identifier("files_of") if params.given("files_of") else None,
            devices=_read_devices(params),
            all_devices=params.flag("all_devices"),
            block_io=_read_block_io(params),
            size=read_size(params),
            driver=driver,
            limits=limits,
            buffer=buffer,
            reader_expected=params.flag("reader_expected"),
            emulated=params.flag("emulated"),
            policy=Policy.read(params.optional_mapping("restart")),
            check=Check.read(params.optional_mapping("health")),
            params=values,
        )

    def options(self, lowerdirs: tuple[str, ...]) -> Options:
        flags = (self.tty, self.open_stdin, self.stdin_once)
        return Options(*flags, lowerdirs, self.driver, self.limits, self.emulated, self.buffer)


def _read_devices(params: Params) -> list[dict[str, str]]:
    devices = params.items("devices", dict) if params.given("devices") else []
    for device in devices:
        values = Params(device)
        for name in ("path", "target"):
            if not values.text(name).startswith("/"):
                raise CallError("invalid", f"devices: {name} {device[name]!r} is not absolute")
        if not values.text("permissions") or not set(device["permissions"]) <= set("rwm"):
            raise CallError("invalid", f"devices: permissions {device['permissions']!r}")
    return devices


def _read_block_io(params: Params) -> list[dict[str, Any]]:
    limits = params.items("block_io", dict) if params.given("block_io") else []
    for limit in limits:
        values = Params(limit)
        values.number("value")
        if not values.text("path").startswith("/"):
            raise CallError("invalid", f"block_io: path {limit['path']!r} is not absolute")
        if values.text("limit") not in BLOCK_IO:
            raise CallError("invalid", f"block_io: limit {limit['limit']!r} is none")
    return limits


def read_size(params: Params) -> tuple[int, int] | None:
    """A call's `size` as (rows, cols)."""
    values = params.optional_mapping("size")
    if values is None:
        return None
    size = Params(values)
    return size.number("rows"), size.number("cols")


def with_size(process: Mapping[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """The OCI process object with the terminal's size in it."""
    if size is None:
        return dict(process)
    return {**process, "consoleSize": {"height": size[0], "width": size[1]}}


def _read_log(values: Mapping[str, Any] | None) -> tuple[str, Limits, int]:
    if values is None:
        return FILE, UNLIMITED, 0
    params = Params(values)
    driver = params.text("driver")
    if driver not in (FILE, NONE):
        raise CallError("invalid", f"log.driver {driver!r} is neither {FILE} nor {NONE}")
    max_size = params.optional_number("max_size") or 0
    max_files = params.optional_number("max_files") or 1
    if max_size < 0 or max_files < 1:
        raise CallError("invalid", "log.max_size is negative, or log.max_files below 1")
    buffer = params.optional_number("buffer") or 0
    if buffer < 0:
        raise CallError("invalid", "log.buffer is negative")
    return driver, Limits(max_size, max_files), buffer
