"""A machine's configuration made and changed: checked against this host before it is written.

Blocking; what reaches into a running machine (`growing`) is not here. `check` is where every value
that a person may get wrong becomes one clear line.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from wherry.errors import Conflict, InvalidInput, MachineError, NotFound
from wherry.machine.accel import AccelChoice, candidate
from wherry.machine.config import MachineConfig, default_config, read_config, write_config
from wherry.machine.disk import disk_size
from wherry.machine.find import Qemu
from wherry.machine.transports import check_link
from wherry.osutil import total_memory
from wherry.paths import Home, MachinePaths
from wherry.settings import Settings
from wherry_image import VmImageError, check_kernel, parse_kernel

_GIB = 1 << 30
_CPU_HELP_SECONDS = 10.0

Change = Mapping[str, Any]
"""Field of MachineConfig to value."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What is written about one machine.

    Args:
        find_qemu, choose_accel: as in `bringup.Tools`.
    """

    home: Home
    paths: MachinePaths
    settings: Settings
    find_qemu: Callable[[str, str | None], Qemu]
    choose_accel: Callable[[Qemu, str, Path], AccelChoice]

    def stored(self) -> MachineConfig:
        """As written, else the defaults; a disk that was kept counts with its size."""
        config = read_config(self.paths.config)
        if config is not None:
            return config
        config = default_config(self.settings)
        return replace(config, disk_gib=max(config.disk_gib, _disk_gib(self.paths.data_disk)))

    def create(self, values: Change, disk_from: str | None = None) -> MachineConfig:
        """Write the configuration of a machine that has none.

        Args:
            disk_from: the removed machine whose disk was kept and is going to be this one's.

        Raises:
            Conflict: it has one; there is a machine `disk_from`.
            NotFound: no disk was kept of `disk_from`.
            InvalidInput, QemuNotFound, MachineError: a value is wrong, or does not work here.
        """
        if self.paths.config.exists():
            raise Conflict(f"there is a machine {self.paths.root.name!r} already")
        source = self.paths if disk_from is None else self._kept(disk_from)
        kept_gib = _disk_gib(source.data_disk)
        base = default_config(self.settings)
        config = changed(replace(base, disk_gib=kept_gib or base.disk_gib), values)
        _check_disk(config.disk_gib, kept_gib)
        self._check(config, base, always=True)
        write_config(self.paths.config, config)
        return config

    def change(self, values: Change) -> MachineConfig:
        """Write what is changed by `values`; in force from the next start on.

        Raises:
            InvalidInput, QemuNotFound, MachineError: a value is wrong, or does not work here.
        """
        before = self.stored()
        config = changed(before, values)
        has_disk = self.paths.data_disk.exists()
        _check_disk(config.disk_gib, before.disk_gib if has_disk else 0)
        if config.arch != before.arch and has_disk:
            raise InvalidInput(
                "the architecture of a machine that has started once cannot be changed",
                hint=f"make another: wherry machine create NAME --arch {config.arch}",
            )
        self._check(config, before, always=False)
        write_config(self.paths.config, config)
        return config

    def _kept(self, name: str) -> MachinePaths:
        kept = self.home.machine(name)
        if kept.config.exists():
            raise Conflict(
                f"machine {name!r} needs its disk itself",
                hint=f"wherry machine clone {name} NEW, or wherry machine rm --keep-disk {name}",
            )
        if not kept.data_disk.exists():
            raise NotFound(f"no disk of a machine {name!r} was kept")
        return kept

    def _check(self, config: MachineConfig, before: MachineConfig, *, always: bool) -> None:
        """Refuse what cannot work on this host; `always`: also what did not change."""

        def new(*names: str) -> bool:
            return always or any(getattr(config, n) != getattr(before, n) for n in names)

        if new("memory_mib"):
            _check_memory(config.memory_mib)
        if new("link"):
            check_link(config)
        if new("arch", "accel", "cpu"):
            _check_accel(config)
            qemu = self.find_qemu(config.arch, self.settings.qemu)
            if config.accel != "auto":
                self.choose_accel(qemu, config.accel, self.home.probes)
            if config.cpu != "auto":
                _check_cpu(qemu, config.cpu)
        if new("kernel", "modules", "arch"):
            _check_kernel(config)


def changed(config: MachineConfig, values: Change) -> MachineConfig:
    """`config` with other values.

    Raises:
        InvalidInput: an unknown field, a value of the wrong type, one that is not possible.
    """
    known = {field.name: type(getattr(config, field.name)) for field in fields(MachineConfig)}
    for name, value in values.items():
        if name not in known:
            raise InvalidInput(f"a machine has no {name!r}", hint=f"known: {', '.join(known)}")
        if type(value) is not known[name]:
            raise InvalidInput(f"{name} must be of type {known[name].__name__}, not {value!r}")
    if "kernel" in values and "modules" not in values:
        values = {**values, "modules": ""}  # they belonged to the kernel before
    return replace(config, **values)


def pending(now: MachineConfig, following: MachineConfig) -> dict[str, dict[str, Any]]:
    """What the next start changes: field to {"now", "next"}."""
    before, after = asdict(now), asdict(following)
    return {
        name: {"now": before[name], "next": after[name]}
        for name in before
        if before[name] != after[name]
    }


def _disk_gib(data_disk: Path) -> int:
    """Of the data disk that is there; 0: there is none."""
    return -(-disk_size(data_disk) // _GIB) if data_disk.exists() else 0


def _check_disk(wanted_gib: int, present_gib: int) -> None:
    if wanted_gib < present_gib:
        raise InvalidInput(
            f"a disk cannot be made smaller: it has {present_gib} GiB",
            hint="on this computer it takes only what is stored in it",
        )


def _check_memory(memory_mib: int) -> None:
    have = total_memory() >> 20
    if memory_mib > have:
        raise InvalidInput(
            f"a machine cannot have {memory_mib} MiB of memory: this computer has {have} MiB"
        )


def _check_accel(config: MachineConfig) -> None:
    if config.accel in ("auto", "tcg"):
        return
    possible = candidate(config.arch)
    if config.accel != possible:
        others = "tcg" if possible is None else f"{possible} or tcg"
        raise InvalidInput(
            f"{config.accel} cannot run {config.arch} machines on this computer",
            hint=f"use auto, {others}",
        )


def _check_cpu(qemu: Qemu, cpu: str) -> None:
    """The model must be one that this QEMU knows; its features are QEMU's to judge."""
    model = cpu.partition(",")[0]
    try:
        done = subprocess.run(
            [*qemu.command(), "-cpu", "help"],
            env=qemu.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CPU_HELP_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise MachineError(f"{qemu.binary} does not list its processors: {error}") from error
    if model not in cpu_models(done.stdout.decode(errors="replace")):
        raise InvalidInput(
            f"QEMU has no {qemu.arch} processor {model!r}",
            hint=f"{qemu.binary.name} -cpu help lists them",
        )


def cpu_models(text: str) -> frozenset[str]:
    """The models in the output of `qemu-system-* -cpu help`.

    QEMU's x86 lists `x86 NAME  description`, newer ones and ARM's `  NAME`.
    """
    lines = [line.split() for line in text.partition("Recognized CPUID flags")[0].splitlines()]
    words = [line[1] if line[0] == "x86" and len(line) > 1 else line[0] for line in lines if line]
    return frozenset(words)


def _check_kernel(config: MachineConfig) -> None:
    try:
        check_kernel(config.arch, parse_kernel(config.kernel, config.modules))
    except VmImageError as error:
        raise InvalidInput(error.message, hint=error.hint) from error
