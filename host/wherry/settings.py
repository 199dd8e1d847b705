"""The user's settings: `config.yml` and the environment, as one frozen value.

The environment wins over the file, the file over the defaults. An unknown key is an error that
names the file and the key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from wherry.errors import InvalidInput

_ENVIRONMENT = {
    "debian_mirror": "WHERRY_DEBIAN_MIRROR",
    "qemu": "WHERRY_QEMU",
    "accel": "WHERRY_ACCEL",
    "default_machine": "WHERRY_MACHINE",
    "insecure_registries": "WHERRY_INSECURE_REGISTRIES",
}


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
        cpus, memory_mib, disk_gib: the size of a new machine; 0: chosen from the host's.
    """

    debian_mirror: str | None = None
    qemu: str | None = None
    accel: str = "auto"
    default_machine: str = "default"
    insecure_registries: tuple[str, ...] = ()
    cpus: int = 0
    memory_mib: int = 0
    disk_gib: int = 64


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
    wanted: type = int if key in ("cpus", "memory_mib", "disk_gib") else str
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise InvalidInput(f"{file}: {key} must be of type {wanted.__name__}")
    return value
