"""The size of a machine, kept in its machine.json, and the machines that there are."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from wherry.errors import Conflict, InvalidInput, NotFound, StorageError
from wherry.machine.accel import ACCELERATORS, host_arch
from wherry.machine.record import read_record
from wherry.osutil import (
    atomic_write,
    cpu_count,
    is_alive,
    private_directory,
    total_memory,
)
from wherry.paths import (
    Home,
    MachinePaths,
    is_machine_name,
    machine_of_directory,
)
from wherry.settings import Settings
from wherry_image import VmImageError, parse_kernel
from wherry_image.kernels import DEFAULT

_DEFAULT_CPUS = 4
_DEFAULT_MEMORY_MIB = 4096
MINIMUM_MEMORY_MIB = 256
_MAXIMUM_DISK_GIB = 4096
ARCHITECTURES = ("amd64", "arm64")


LINKS = ("serial", "vsock", "ssh")
_CPU = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(,[+-]?[a-zA-Z0-9_.-]+(=[a-zA-Z0-9_.-]+)?)*")
"""QEMU's `-cpu`: a model, then features."""


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """What a machine has.

    Attributes:
        accel: auto, or one that is asked for (`accel.ACCELERATORS`).
        cpu: auto, or a processor model of QEMU's with features (`max,-avx512f`).
        link: how the engine reaches the agent: one of LINKS.
        kernel: default, a series (`wherry_image.kernels.SERIES`), or the absolute path of a kernel
            or of a linuxkit.yml.
        modules: directory of the modules of a kernel that is a path; empty: looked for beside it.
    """

    cpus: int
    memory_mib: int
    disk_gib: int
    arch: str
    accel: str = "auto"
    cpu: str = "auto"
    link: str = "serial"
    kernel: str = DEFAULT
    modules: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.cpus <= 255:
            raise InvalidInput(f"a machine cannot have {self.cpus} processors")
        if self.memory_mib < MINIMUM_MEMORY_MIB:
            raise InvalidInput(
                f"{self.memory_mib} MiB of memory are too little for a machine",
                hint=f"give it at least {MINIMUM_MEMORY_MIB} MiB",
            )
        if not 1 <= self.disk_gib <= _MAXIMUM_DISK_GIB:
            raise InvalidInput(f"a machine's disk cannot have {self.disk_gib} GiB")
        if self.arch not in ARCHITECTURES:
            raise InvalidInput(
                f"unknown architecture {self.arch!r}", hint=f"one of {', '.join(ARCHITECTURES)}"
            )
        if self.accel not in ("auto", *ACCELERATORS):
            raise InvalidInput(
                f"unknown accelerator {self.accel!r}",
                hint=f"one of auto, {', '.join(ACCELERATORS)}",
            )
        if not _CPU.fullmatch(self.cpu):
            raise InvalidInput(
                f"{self.cpu!r} is not a processor model", hint="as in max, Haswell or max,-avx512f"
            )
        if self.link not in LINKS:
            raise InvalidInput(f"unknown link {self.link!r}", hint=f"one of {', '.join(LINKS)}")
        try:
            parse_kernel(self.kernel, self.modules)
        except VmImageError as error:
            raise InvalidInput(error.message, hint=error.hint) from error


def default_config(settings: Settings) -> MachineConfig:
    """min(4, cores) processors, min(4 GiB, half of the memory), 64 GiB of disk, unless set."""
    half = total_memory() // 2 // (1 << 20)
    return MachineConfig(
        cpus=settings.cpus or min(_DEFAULT_CPUS, cpu_count()),
        memory_mib=settings.memory_mib or max(MINIMUM_MEMORY_MIB, min(_DEFAULT_MEMORY_MIB, half)),
        disk_gib=settings.disk_gib,
        arch=host_arch(),
        accel="auto",
    )


def read_config(file: Path) -> MachineConfig | None:
    """The stored configuration; None when there is none.

    Raises:
        StorageError: the file is damaged.
        InvalidInput: it has a value that is not possible.
    """
    try:
        return config_from_json(json.loads(file.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{file} is damaged ({error})", hint="correct it, or remove it to get the defaults"
        ) from error


def config_from_json(data: Mapping[str, Any]) -> MachineConfig:
    """The inverse of `asdict`; fields that an older version did not know have their defaults.

    Raises:
        KeyError, TypeError: it is not one's data.
        InvalidInput: it has a value that is not possible.
    """
    return MachineConfig(
        **{
            field.name: data[field.name]
            for field in fields(MachineConfig)
            if field.name in data or field.default is MISSING
        }
    )


def write_config(file: Path, config: MachineConfig) -> None:
    atomic_write(file, json.dumps(asdict(config), indent=1, sort_keys=True).encode() + b"\n")


def list_machines(home: Home) -> list[str]:
    """The names of all machines, sorted."""
    try:
        entries = sorted(home.machines.iterdir())
    except FileNotFoundError:
        return []
    return [entry.name for entry in entries if entry.is_dir() and is_machine_name(entry.name)]


def machine_names(home: Home) -> frozenset[str]:
    """As `list_machines`, with those that are being made."""
    try:
        entries = list(home.machines.iterdir())
    except FileNotFoundError:
        return frozenset()
    return frozenset(filter(None, map(machine_of_directory, entries)))


def create_machine(home: Home, name: str, config: MachineConfig) -> None:
    """Lay down a machine's directory; its disk and image are made when it first starts.

    Raises:
        InvalidInput: not a possible name.
        Conflict: there is one of that name.
    """
    paths = home.machine(name)
    if paths.config.exists():
        raise Conflict(f"there is a machine {name!r} already")
    prepare_directories(home, paths)
    write_config(paths.config, config)


def remove_machine(home: Home, name: str) -> None:
    """Remove a machine that is off, with its data disk.

    Raises:
        NotFound: no such machine.
        Conflict: its QEMU runs.
    """
    paths = home.machine(name)
    if not paths.root.is_dir():
        raise NotFound(f"no machine {name!r}", hint="wherry machine ls lists them")
    record = read_record(paths.qemu_record)
    if record is not None and is_alive(record.identity):
        raise Conflict(f"machine {name!r} is running", hint=f"wherry machine stop {name}")
    for directory in {paths.root, paths.sockets}:
        if directory.exists():
            shutil.rmtree(directory)


def prepare_directories(home: Home, paths: MachinePaths) -> None:
    """Make the machine's private directories.

    Raises:
        StorageError: one of them is not ours.
    """
    for directory in (home.root, paths.root, paths.sockets):
        private_directory(directory)
