"""What a container wants mounted: Docker's Binds, Mounts, Volumes, VolumesFrom and Tmpfs. Pure.

The rules and words are the reference engine's (moby: volume/mounts/linux_parser.go,
daemon/volumes.go): what a client names twice is an error, `-v` and `--mount` win over `--volumes-
from`, and all of them over the image's volumes. A directory of the user's own computer cannot be
mounted yet: that is a 501 which names the field.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from wherry.engine.model import Container, MountPoint
from wherry.errors import InvalidInput, NotImplementedYet
from wherry.paths import container_path_hint

LOCAL = "local"
"""The only volume driver."""

_ACCESS = ("rw", "ro")
_LABELS = ("z", "Z")
_PROPAGATION = ("private", "rprivate", "slave", "rslave", "shared", "rshared")
_COPY = ("nocopy",)
_CONSISTENCY = ("default", "consistent", "cached", "delegated")
_MODE_KINDS = (_ACCESS, _LABELS, _PROPAGATION, _COPY, _CONSISTENCY)
"""At most one word of each kind may stand in a mode."""

_DEFAULT_MODE = "z"
"""What inspect shows for a volume without a mode."""

_TMPFS_FLAGS = (
    "ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "sync", "async", "dirsync",
    "noatime", "atime", "nodiratime", "diratime", "relatime", "norelatime", "strictatime",
    "nostrictatime", "defaults",
)  # fmt: skip
_TMPFS_VALUES = ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol")
_WINDOWS_PATH = re.compile(r"[A-Za-z]:(\\|/.*:/)|\\\\")
"""`C:\\x`, `c:/x:/target`, a share: as Windows' clients write them."""
_NO_HOST_DIRECTORIES = (
    "use a volume (-v NAME:/path), or copy the files: wherry cp PATH CONTAINER:/path"
)

_MOUNT_FIELDS: Mapping[str, str] = {
    "BindOptions": "bind", "VolumeOptions": "volume", "TmpfsOptions": "tmpfs",
    "ImageOptions": "image", "ClusterOptions": "cluster",
}  # fmt: skip


def wanted_mounts(
    config: Mapping[str, Any],
    host_config: Mapping[str, Any],
    find: Callable[[str], Container],
) -> tuple[MountPoint, ...]:
    """The mounts of a new container, in the order in which they are mounted.

    Args:
        config: merged with the image's: its Volumes are among them.
        find: a container by reference, for VolumesFrom.

    Returns:
        Mount points; an anonymous volume has no name yet.

    Raises:
        InvalidInput: a specification is wrong, or a destination is named twice.
        NotImplementedYet: a directory of the user's computer, or a kind of mount that there is not.
        NotFound: of `find`.
    """
    wanted = _Wanted(frozenset(tmpfs_mounts(host_config)))
    for text in host_config.get("VolumesFrom") or ():
        wanted.inherit(*_parse_volumes_from(text), find)
    driver = host_config.get("VolumeDriver") or LOCAL
    for text in host_config.get("Binds") or ():
        check_driver(driver)
        wanted.add(parse_bind(text))
    for item in host_config.get("Mounts") or ():
        wanted.add(parse_mount(item))
    for path in sorted(config.get("Volumes") or {}):
        wanted.default(MountPoint("volume", _destination(path), copy=True, anonymous=True))
    return tuple(sorted(wanted.mounts.values(), key=lambda mount: mount.destination.count("/")))


def parse_bind(text: str) -> MountPoint:
    """`NAME:/path[:MODE]` or `/path`, an entry of Binds. Raises as `wanted_mounts`."""
    if (text.startswith("/") and ":" in text) or _WINDOWS_PATH.match(text):
        _refuse_host_path("HostConfig.Binds", text)
    parts = text.split(":", 3)
    if not parts[0] or len(parts) > 3:
        raise InvalidInput(f"invalid volume specification: '{text}'")
    if len(parts) == 1:
        return MountPoint("volume", _destination(text), copy=True, anonymous=True)
    if len(parts) == 2 and _is_mode(parts[1]):
        raise InvalidInput(f"invalid volume specification: '{text}'")
    mode = parts[2] if len(parts) == 3 else ""
    if not _is_mode(mode):
        raise InvalidInput(f'invalid mode: "{mode}"')
    words = mode.split(",")
    if any(word in _PROPAGATION for word in words):
        raise InvalidInput(
            f"invalid volume specification: '{text}': propagation is for directories, not volumes"
        )
    return MountPoint(
        "volume",
        _destination(parts[1], text),
        volume=parts[0],
        writable="ro" not in words,
        mode=mode or _DEFAULT_MODE,
        copy="nocopy" not in words,
    )


def parse_mount(item: Mapping[str, Any]) -> MountPoint:
    """An object of Mounts. Raises as `wanted_mounts`."""
    kind = str(item.get("Type") or "volume").lower()
    try:
        for name, owner in _MOUNT_FIELDS.items():
            if item.get(name) and owner != kind:
                raise InvalidInput(f"field {name} must not be specified")
        if not item.get("Target"):
            raise InvalidInput("field Target must not be empty")
        target = _destination(str(item["Target"]))
        if kind == "volume":
            return _volume_mount(item, target)
        if kind == "tmpfs":
            return _tmpfs_mount(item, target)
        if kind not in ("bind", "image", "npipe", "cluster"):
            raise InvalidInput("mount type unknown")
    except InvalidInput as error:
        words = f'invalid mount config for type "{kind}": {error.message}'
        raise InvalidInput(words, hint=error.hint) from error
    if kind == "bind":
        _refuse_host_path("HostConfig.Mounts with Type=bind", str(item.get("Source") or ""))
    raise NotImplementedYet(f"HostConfig.Mounts with Type={kind} is not implemented")


def tmpfs_mounts(host_config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """HostConfig.Tmpfs: clean destination to mount options. Raises InvalidInput."""
    return {
        _destination(path): checked_tmpfs_options(str(options or ""))
        for path, options in (host_config.get("Tmpfs") or {}).items()
    }


def checked_tmpfs_options(text: str) -> tuple[str, ...]:
    """`size=64m,mode=1770,exec` as options. Raises InvalidInput for one that tmpfs has not."""
    options = tuple(filter(None, text.split(",")))
    for option in options:
        name, equals, value = option.partition("=")
        known = name in _TMPFS_VALUES and value if equals else name in _TMPFS_FLAGS
        if not known:
            raise InvalidInput(f'invalid tmpfs option "{option}"')
    return options


def check_driver(driver: str | None, options: Mapping[str, str] | None = None) -> None:
    """Refuse what the local driver cannot do.

    Raises:
        InvalidInput: there is no such driver, or it has no such option.
        NotImplementedYet: an option of Docker's local driver that is not implemented.
    """
    if driver not in (None, "", LOCAL):
        raise InvalidInput(
            f'error looking up volume plugin {driver}: plugin "{driver}" not found',
            hint=f"the only driver is {LOCAL}",
            http_status=404,
        )
    for name in options or ():
        if name not in ("type", "device", "o", "size"):
            raise InvalidInput(f'invalid option: "{name}"')
        raise NotImplementedYet(
            f"DriverOpts.{name} is not implemented: volumes are directories on the machine's disk",
            hint="for a file system in memory: --mount type=tmpfs,target=/path",
        )


@dataclass(slots=True)
class _Wanted:
    """Mounts by destination; `named`: what a client asked for by `-v` or `--mount`."""

    tmpfs: frozenset[str]
    mounts: dict[str, MountPoint] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)

    def add(self, mount: MountPoint) -> None:
        if mount.destination in self.named or mount.destination in self.tmpfs:
            raise InvalidInput(f"Duplicate mount point: {mount.destination}")
        self.named.add(mount.destination)
        self.mounts[mount.destination] = mount

    def default(self, mount: MountPoint) -> None:
        if mount.destination not in self.tmpfs:
            self.mounts.setdefault(mount.destination, mount)

    def inherit(self, ref: str, mode: str, find: Callable[[str], Container]) -> None:
        """The volumes of another container; what it filled is not filled again."""
        for mount in find(ref).mounts:
            if mount.type == "volume":
                writable = mount.writable and "ro" not in mode.split(",")
                self.mounts[mount.destination] = replace(mount, writable=writable, copy=False)


def _parse_volumes_from(text: str) -> tuple[str, str]:
    if not text:
        raise InvalidInput("volumes-from specification cannot be an empty string")
    ref, _, mode = text.partition(":")
    words = mode.split(",")
    if not _is_mode(mode) or any(word in (*_PROPAGATION, *_COPY) for word in words):
        raise InvalidInput(f'invalid mode: "{mode}"')
    return ref, mode or "rw"


def _is_mode(text: str) -> bool:
    """Whether it can be the third part of `-v`; an empty one can."""
    if not text:
        return True
    words = text.split(",")
    if any(all(word not in kind for kind in _MODE_KINDS) for word in words):
        return False
    return all(sum(word in kind for word in words) <= 1 for kind in _MODE_KINDS)


def _volume_mount(item: Mapping[str, Any], target: str) -> MountPoint:
    source = str(item.get("Source") or "")
    options = item.get("VolumeOptions") or {}
    subpath = str(options.get("Subpath") or "")
    read_only = bool(item.get("ReadOnly"))
    driver = options.get("DriverConfig") or {}
    check_driver(driver.get("Name"), driver.get("Options"))
    if not source and subpath:
        raise InvalidInput("must not set Subpath when using anonymous volumes")
    if not source and read_only:
        raise InvalidInput("must not set ReadOnly mode when using anonymous volumes")
    if subpath and not _is_local(subpath):
        raise InvalidInput("subpath must be a relative path within the volume")
    return MountPoint(
        "volume",
        target,
        volume=source,
        writable=not read_only,
        mode=_DEFAULT_MODE,
        subpath=subpath,
        copy=not options.get("NoCopy") and not subpath,
        anonymous=not source,
        labels=dict(options.get("Labels") or {}),
    )


def _tmpfs_mount(item: Mapping[str, Any], target: str) -> MountPoint:
    if item.get("Source"):
        raise InvalidInput("field Source must not be specified")
    options = item.get("TmpfsOptions") or {}
    words = ["ro"] if item.get("ReadOnly") else []
    if mode := options.get("Mode"):
        words.append(f"mode={_whole(mode, 'Mode'):o}")
    if size := options.get("SizeBytes"):
        words.append(f"size={_whole(size, 'SizeBytes')}")
    for pair in options.get("Options") or ():
        if list(pair) not in (["exec"], ["noexec"]):
            raise InvalidInput(f"invalid option: {'='.join(map(str, pair))}")
        words.append(pair[0])
    return MountPoint("tmpfs", target, writable=not item.get("ReadOnly"), options=tuple(words))


def _whole(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidInput(f"TmpfsOptions.{name} must be a whole number, not {value!r}")
    return value


def _is_local(path: str) -> bool:
    """Go's filepath.IsLocal: relative, and not above where it begins."""
    return not path.startswith("/") and posixpath.normpath(path).split("/")[0] != ".."


def _destination(path: str, whole: str | None = None) -> str:
    """A clean absolute path that is not the root. Raises InvalidInput."""
    prefix = "" if whole is None else f"invalid volume specification: '{whole}': "
    if not path.startswith("/"):
        raise InvalidInput(
            f"{prefix}invalid mount path: '{path}' mount path must be absolute",
            hint=container_path_hint(path),
        )
    clean = "/" + posixpath.normpath(path).lstrip("/")
    if clean == "/":
        raise InvalidInput(f"{prefix}invalid specification: destination can't be '/'")
    return clean


def _refuse_host_path(where: str, what: str) -> None:
    raise NotImplementedYet(
        f"{where} is not implemented for a directory of this computer (got {what!r})",
        hint=_NO_HOST_DIRECTORIES,
    )
