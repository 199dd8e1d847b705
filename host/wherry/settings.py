"""The user's settings: `config.yml` and the environment, as one frozen value.

The environment wins over the file, the file over the defaults. An unknown key is an error that
names the file and the key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from wherry.errors import InvalidInput
from wherry.units import parse_duration

_ENVIRONMENT = {
    "debian_mirror": "WHERRY_DEBIAN_MIRROR",
    "qemu": "WHERRY_QEMU",
    "accel": "WHERRY_ACCEL",
    "default_machine": "WHERRY_MACHINE",
    "insecure_registries": "WHERRY_INSECURE_REGISTRIES",
}
_CHOICES = {"userns": ("host", "private")}
_NUMBERS = ("cpus", "memory_mib", "disk_gib", "image_limit_gib")
_FLAGS = ("template",)
_DURATIONS = ("idle_stop",)
_SHORTEST = 5.0
"""Seconds: less would put a machine aside between two commands."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a user can set.

    Attributes:
        debian_mirror: base URL of a Debian mirror for the VM's packages; None: the host's own apt
            configuration where there is one, else Debian's snapshot archive.
        qemu: path of a qemu-system-* binary, or of the directory that holds them.
        accel: auto, kvm, hvf, whpx or tcg.
        default_machine: the machine that commands talk to.
        insecure_registries: `host[:port]` that may be asked over HTTP (loopback always may).
        registry_mirrors: a registry's domain to the base URLs that are asked before it, in order.
        registry_ca: `host[:port]` to a PEM file of CAs that its certificate may be signed by.
        image_limit_gib: how much a layer, or an archive of images, may unpack to.
        cpus, memory_mib, disk_gib: the size of a new machine; 0: chosen from the host's.
        template: whether a start may restore a saved machine, and machines are saved for that.
        idle_stop: seconds after which a machine in which nothing runs is put aside (`10m` in the
            file); 0: never.
        userns: the user namespace of containers that do not say: `host` (none), or `private`.
    """

    debian_mirror: str | None = None
    qemu: str | None = None
    accel: str = "auto"
    default_machine: str = "default"
    insecure_registries: tuple[str, ...] = ()
    registry_mirrors: tuple[tuple[str, tuple[str, ...]], ...] = ()
    registry_ca: tuple[tuple[str, str], ...] = ()
    image_limit_gib: int = 64
    cpus: int = 0
    memory_mib: int = 0
    disk_gib: int = 64
    template: bool = True
    idle_stop: float = 0.0
    userns: str = "host"


def load_settings(file: Path, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read `file` (it may be missing) and the environment.

    Raises:
        InvalidInput: the file is not YAML, or has an unknown key or a value of the wrong type.
    """
    values: dict[str, object] = _from_file(file) if file.exists() else {}
    for name, variable in _ENVIRONMENT.items():
        if value := environ.get(variable):
            values[name] = tuple(value.split(",")) if name == "insecure_registries" else value
    return Settings(**values)  # type: ignore[arg-type]  # checked by _from_file


def _from_file(file: Path) -> dict[str, object]:
    import yaml  # here: most commands have no settings file and should not pay for the import

    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InvalidInput(f"{file} is not YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InvalidInput(f"{file} must hold a mapping of settings")
    known = {field.name: field for field in fields(Settings)}
    values: dict[str, object] = {}
    for key, value in data.items():
        if key not in known:
            raise InvalidInput(
                f"{file}: unknown setting {key!r}", hint=f"known: {', '.join(known)}"
            )
        values[key] = _checked(file, key, value)
    return values


def _checked(file: Path, key: str, value: object) -> object:
    if key == "insecure_registries":
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise InvalidInput(f"{file}: {key} must be a list of host names")
    if key == "registry_mirrors":
        return _mirrors(file, value)
    if key == "registry_ca":
        if isinstance(value, dict) and _all_text([*value, *value.values()]):
            return tuple(value.items())
        raise InvalidInput(f"{file}: {key} must map hosts to files")
    if key in _DURATIONS:
        return _duration(file, key, value)
    wanted: type = int if key in _NUMBERS else bool if key in _FLAGS else str
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise InvalidInput(f"{file}: {key} must be of type {wanted.__name__}")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise InvalidInput(f"{file}: {key} must be one of {', '.join(_CHOICES[key])}")
    return value


def _duration(file: Path, key: str, value: object) -> float:
    """Seconds of `10m`; 0 and `false` are never."""
    if value in (0, False, "0"):
        return 0.0
    try:
        seconds = parse_duration(value) / 1e9 if isinstance(value, str) else 0.0
    except InvalidInput:
        seconds = 0.0
    if seconds < _SHORTEST:
        raise InvalidInput(
            f"{file}: {key} must be a duration of at least {_SHORTEST:g}s", hint="as in 10m"
        )
    return seconds


def _mirrors(file: Path, value: object) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """`{domain: [base URL, …]}`; a single URL may stand for a list of one."""
    if not isinstance(value, dict) or not _all_text(value):
        raise InvalidInput(f"{file}: registry_mirrors must map registries to lists of URLs")
    found = []
    for domain, given in value.items():
        urls = [given] if isinstance(given, str) else given
        if not isinstance(urls, list) or not _all_text(urls):
            raise InvalidInput(f"{file}: registry_mirrors of {domain} must be a list of URLs")
        for url in urls:
            if not re.fullmatch(r"https?://[^/?#@\s]+/?", url):
                raise InvalidInput(
                    f"{file}: registry_mirrors of {domain}: {url!r} is not http(s)://host[:port]"
                )
        found.append((domain, tuple(url.rstrip("/") for url in urls)))
    return tuple(found)


def _all_text(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)
