"""The flags of `machine create` and `machine set`, and what they say as fields of a machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from wherry.errors import InvalidInput
from wherry.units import parse_size

_F = TypeVar("_F", bound=Callable[..., Any])

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""What uname says, to what machines say."""

_MIB, _GIB = 1 << 20, 1 << 30

_OPTIONS = (
    click.option("--cpus", type=int, metavar="N", help="Processors."),
    click.option("--memory", metavar="SIZE", help="Memory, as in 2g."),
    click.option("--disk", metavar="SIZE", help="Size of the data disk, as in 64g; it can grow."),
    click.option("--arch", metavar="ARCH", help="amd64 or arm64; another than the host's is slow."),
    click.option("--accel", metavar="NAME", help="auto, kvm, hvf, whpx or tcg."),
    click.option("--cpu", metavar="MODEL", help="Processor model of QEMU's, as in max,-avx512f."),
    click.option(
        "--link", metavar="KIND", help="How the engine reaches the agent: serial, vsock or ssh."
    ),
    click.option(
        "--kernel",
        metavar="KERNEL",
        help="default, 6.1, 6.12, testing, or the path of a kernel or of a linuxkit.yml.",
    ),
    click.option("--modules", metavar="DIR", help="Where the modules of a kernel's path are."),
    click.option("--config", metavar="FILE", help="A linuxkit.yml for the VM."),
)


def machine_options(function: _F) -> _F:
    """Decorator of a command: gives it the flags; `machine_values` reads them."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def machine_values(flags: dict[str, Any]) -> dict[str, Any]:
    """The fields that were given.

    Raises:
        InvalidInput: a size that is none, or flags that exclude each other.
    """
    values: dict[str, Any] = {
        name: flags[name] for name in ("cpus", "accel", "cpu", "link") if flags[name] is not None
    }
    if flags["memory"] is not None:
        values["memory_mib"] = _whole(flags["memory"], _MIB, "MiB", "memory")
    if flags["disk"] is not None:
        values["disk_gib"] = _whole(flags["disk"], _GIB, "GiB", "a disk")
    if flags["arch"] is not None:
        values["arch"] = _ARCHITECTURES.get(flags["arch"], flags["arch"])
    kernel, config, modules = flags["kernel"], flags["config"], flags["modules"]
    if kernel is not None and config is not None:
        raise InvalidInput("--kernel and --config exclude each other", hint="both name the kernel")
    if config is not None:
        if not config.endswith((".yml", ".yaml")):
            raise InvalidInput(f"{config} is not a linuxkit.yml", hint="its name ends in .yml")
        values["kernel"] = str(Path(config).absolute())
    elif kernel is not None:
        values["kernel"] = _kernel(kernel)
    if modules is not None:
        if kernel is None:
            raise InvalidInput("--modules needs --kernel PATH")
        values["modules"] = str(Path(modules).absolute())
    return values


def _whole(text: str, unit: int, name: str, what: str) -> int:
    """Sizes without a unit are refused: nobody means bytes here."""
    size = parse_size(text)
    if text.strip().isdecimal():
        raise InvalidInput(f"{text!r} has no unit", hint="as in 512m or 2g")
    if size % unit:
        raise InvalidInput(
            f"{text!r} is no whole number of {name}", hint=f"{what} is counted so: as in 2g"
        )
    return size // unit


def _kernel(text: str) -> str:
    """A path is the caller's: the engine's directory is another."""
    is_path = "/" in text or "\\" in text or text.endswith((".yml", ".yaml"))
    return str(Path(text).absolute()) if is_path or Path(text).is_file() else text
