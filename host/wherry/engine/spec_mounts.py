"""The mounts of a container's runtime spec. Pure.

The defaults are the reference engine's (moby: oci/defaults.go, daemon/oci_linux.go): what a client
mounts takes the place of a default, and who mounts /dev has all of it. Volumes are named by their
directory, which the guest's agent finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wherry.engine.model import Container, Json, MountPoint
from wherry.engine.modes import neighbour
from wherry.engine.mounts import tmpfs_mounts

DEFAULT_SHM_SIZE = 64 * 1024 * 1024

_TMPFS_DEFAULTS = ("noexec", "nosuid", "nodev")
_STAY_WRITABLE = ("/proc", "/dev/pts", "/dev/shm", "/dev/mqueue", "/dev")
"""With a read-only root these defaults are as ever, the others become read-only."""


def runtime_mounts(container: Container, directory: Callable[[str], str]) -> list[Json]:
    """`mounts`, in order.

    Args:
        directory: a volume's name to its directory's.
    """
    host_config = container.host_config
    own = [_own_mount(mount, directory) for mount in container.mounts]
    for target, options in tmpfs_mounts(host_config).items():
        own.append(_mount(target, "tmpfs", "tmpfs", (*_TMPFS_DEFAULTS, *options)))
    own.sort(key=lambda mount: mount["destination"].count("/"))
    taken = {mount["destination"] for mount in own}
    defaults = [
        mount
        for mount in default_mounts(host_config)
        if mount["destination"] not in taken
        and not ("/dev" in taken and mount["destination"].startswith("/dev/"))
    ]
    return defaults + own


def default_mounts(host_config: Mapping[str, Any]) -> list[Json]:
    """What every container has."""
    access = "rw" if host_config.get("Privileged") else "ro"
    shm_size = host_config.get("ShmSize") or DEFAULT_SHM_SIZE
    pts = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
    dev = ("nosuid", "strictatime", "mode=755", "size=65536k")
    bare = ("nosuid", "noexec", "nodev")
    mounts = [
        _mount("/proc", "proc", "proc", bare),
        _mount("/dev", "tmpfs", "tmpfs", dev),
        _mount("/dev/pts", "devpts", "devpts", pts),
        _mount("/sys", "sysfs", "sysfs", (*bare, access)),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", (access, *bare)),
        _mount("/dev/mqueue", "mqueue", "mqueue", bare),
        *_shm(host_config.get("IpcMode") or "", (*bare, "mode=1777", f"size={shm_size}")),
    ]
    if host_config.get("ReadonlyRootfs"):
        for mount in mounts:
            if mount["destination"] not in _STAY_WRITABLE and "ro" not in mount["options"]:
                mount["options"].append("ro")
    return mounts


def _shm(mode: str, options: Sequence[str]) -> list[Json]:
    """/dev/shm goes with the IPC namespace; the guest's agent keeps what is shared."""
    if mode == "none":
        return []
    if mode == "host":
        return [_mount("/dev/shm", "bind", "/dev/shm", ("rbind", "nosuid", "noexec", "nodev"))]
    if mode == "shareable" or neighbour(mode):
        return [_mount("/dev/shm", "shm", mode if neighbour(mode) else "", options)]
    return [_mount("/dev/shm", "tmpfs", "shm", options)]


def _own_mount(mount: MountPoint, directory: Callable[[str], str]) -> Json:
    if mount.type == "tmpfs":
        options = (*_TMPFS_DEFAULTS, *mount.options)
        return _mount(mount.destination, "tmpfs", "tmpfs", options)
    options = ("rw" if mount.writable else "ro",)
    if mount.copy:
        options += ("copyup",)
    if mount.subpath:
        options += (f"subpath={mount.subpath}",)
    return _mount(mount.destination, "volume", directory(mount.volume), options)


def _mount(destination: str, kind: str, source: str, options: Sequence[str]) -> Json:
    return {
        "destination": destination,
        "type": kind,
        "source": source,
        "options": list(options),
    }
