"""The flags of `run` and `create` that mount something: -v, --mount, --tmpfs, --volumes-from.

Pure: text in, what the API wants out. The syntax is Docker's (docker/cli: opts/mount.go); what a
mount may be is the engine's to judge, only what cannot be written down is refused here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from wherry.errors import InvalidInput
from wherry.units import parse_size

_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")

FLAGS = [
    click.option(
        "-v", "--volume", multiple=True, metavar="[NAME:]PATH[:MODE]", help="Mount a volume."
    ),
    click.option(
        "--mount", multiple=True, metavar="K=V,…", help="As in type=volume,source=NAME,target=PATH."
    ),
    click.option(
        "--tmpfs", multiple=True, metavar="PATH[:OPTIONS]", help="Mount a file system in memory."
    ),
    click.option(
        "--volumes-from", multiple=True, metavar="CONTAINER", help="Mount its volumes here too."
    ),
    click.option("--volume-driver", metavar="NAME", help="The driver of volumes: local."),
]


@dataclass(frozen=True, slots=True)
class MountFlags:
    """The flags as they were given."""

    volume: tuple[str, ...] = ()
    mount: tuple[str, ...] = ()
    tmpfs: tuple[str, ...] = ()
    volumes_from: tuple[str, ...] = ()
    volume_driver: str | None = None

    def config(self) -> dict[str, Any]:
        """`-v /path`, an anonymous volume, stands in Config."""
        anonymous: dict[str, Any] = {text: {} for text in self.volume if not _has_source(text)}
        return {"Volumes": anonymous or None}

    def host_config(self) -> dict[str, Any]:
        """Raises InvalidInput for what cannot be read."""
        binds = [_absolute_source(text) for text in self.volume if _has_source(text)]
        return {
            "Binds": binds or None,
            "Mounts": [parse_mount(text) for text in self.mount] or None,
            "Tmpfs": dict(_path_and_options(text) for text in self.tmpfs) or None,
            "VolumesFrom": list(self.volumes_from) or None,
            "VolumeDriver": self.volume_driver or "",
        }


def parse_mount(text: str) -> dict[str, Any]:
    """`--mount`: comma-separated, as a line of CSV, into an object of the API's Mounts.

    Raises:
        InvalidInput: a key or a value that there is not.
    """
    import csv  # here: most runs mount nothing

    try:
        (fields,) = csv.reader([text], strict=True)
    except (csv.Error, ValueError) as error:
        raise InvalidInput(f"invalid argument {text!r} for --mount: {error}") from error
    mount: dict[str, Any] = {"Type": "volume"}
    for field in fields:
        key, equals, value = field.partition("=")
        if not equals and key not in _FLAG_KEYS:
            raise InvalidInput(f"invalid field '{field}' must be a key=value pair")
        setter = _MOUNT_KEYS.get(key.lower())
        if setter is None:
            raise InvalidInput(f"unexpected key '{key}' in '{field}'")
        setter(mount, key, value if equals else "true")
    if not mount.get("Target"):
        raise InvalidInput("target is required", hint="as in --mount type=volume,target=/data")
    for name, kind in (("Volume", "volume"), ("Bind", "bind"), ("Tmpfs", "tmpfs")):
        if f"{name}Options" in mount and mount["Type"] != kind:
            raise InvalidInput(f"cannot mix '{kind}-*' options with mount type '{mount['Type']}'")
    return mount


Setter = Callable[[dict[str, Any], str, str], None]


def _set(name: str, convert: Callable[[str, str], Any] = lambda _key, value: value) -> Setter:
    def setter(mount: dict[str, Any], key: str, value: str) -> None:
        mount[name] = convert(key, value)

    return setter


def _set_option(
    group: str, name: str, convert: Callable[[str, str], Any] = lambda _key, value: value
) -> Setter:
    def setter(mount: dict[str, Any], key: str, value: str) -> None:
        mount.setdefault(f"{group}Options", {})[name] = convert(key, value)

    return setter


def _add_pair(*path: str) -> Setter:
    def setter(mount: dict[str, Any], _key: str, value: str) -> None:
        target = mount
        for name in path:
            target = target.setdefault(name, {})
        name, _, content = value.partition("=")
        target[name] = content

    return setter


def _recursive(mount: dict[str, Any], key: str, value: str) -> None:
    options = {
        "enabled": {},
        "disabled": {"NonRecursive": True},
        "writable": {"ReadOnlyNonRecursive": True},
        "readonly": {"ReadOnlyForceRecursive": True},
    }.get(value)
    if options is None:
        raise InvalidInput(f"invalid value for {key}: {value}")
    mount.setdefault("BindOptions", {}).update(options)


def _driver(mount: dict[str, Any], _key: str, value: str) -> None:
    mount.setdefault("VolumeOptions", {}).setdefault("DriverConfig", {})["Name"] = value


def _flag(key: str, value: str) -> bool:
    if value not in (*_TRUE, *_FALSE):
        raise InvalidInput(f"invalid value for {key}: {value}")
    return value in _TRUE


def _size(key: str, value: str) -> int:
    try:
        return parse_size(value)
    except InvalidInput:
        raise InvalidInput(f"invalid value for {key}: {value}") from None


def _mode(key: str, value: str) -> int:
    try:
        return int(value, 8)
    except ValueError:
        raise InvalidInput(f"invalid value for {key}: {value}") from None


def _lower(_key: str, value: str) -> str:
    return value.lower()


def _source(_key: str, value: str) -> str:
    """A relative directory of this computer as an absolute one."""
    relative = value == "." or value.startswith(("./", f".{os.sep}"))
    return os.fspath(Path(value).absolute()) if relative else value


_FLAG_KEYS = ("readonly", "ro", "volume-nocopy", "bind-nonrecursive")
_READ_ONLY = _set("ReadOnly", _flag)
_TARGET = _set("Target")
_SOURCE = _set("Source", _source)
_MOUNT_KEYS: Mapping[str, Setter] = {
    "type": _set("Type", _lower),
    "source": _SOURCE,
    "src": _SOURCE,
    "target": _TARGET,
    "dst": _TARGET,
    "destination": _TARGET,
    "readonly": _READ_ONLY,
    "ro": _READ_ONLY,
    "consistency": _set("Consistency", _lower),
    "bind-propagation": _set_option("Bind", "Propagation", _lower),
    "bind-nonrecursive": _set_option("Bind", "NonRecursive", _flag),
    "bind-recursive": _recursive,
    "volume-subpath": _set_option("Volume", "Subpath"),
    "volume-nocopy": _set_option("Volume", "NoCopy", _flag),
    "volume-label": _add_pair("VolumeOptions", "Labels"),
    "volume-driver": _driver,
    "volume-opt": _add_pair("VolumeOptions", "DriverConfig", "Options"),
    "image-subpath": _set_option("Image", "Subpath"),
    "tmpfs-size": _set_option("Tmpfs", "SizeBytes", _size),
    "tmpfs-mode": _set_option("Tmpfs", "Mode", _mode),
}


def _has_source(text: str) -> bool:
    return ":" in text


def _absolute_source(text: str) -> str:
    source, colon, rest = text.partition(":")
    return f"{_source('', source)}{colon}{rest}"


def _path_and_options(text: str) -> tuple[str, str]:
    path, _, options = text.partition(":")
    return path, options
