"""A container's root as the root of this process, to read and write its files.

Runs in a child of the agent, which ends with what it was forked for. Rules: *nothing of the
machine is reachable from inside*: the root is the container's, no directory outside is open, and
magic links are refused (`kernel.openat2`), so that no link, `..` or race of the container leads
out. No device can be opened, no set-uid bit counts: the mounts are copies that say so.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wherry_guest.core.mounts import open_lock
from wherry_guest.core.overlay import overlay_options
from wherry_guest.core.syscalls import (
    AT_FDCWD,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    O_PATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    UMOUNT_NOFOLLOW,
    Kernel,
)
from wherry_guest.zygote import Rootfs

_MADE_UP: Final = ("/proc", "/sys", "/dev")

_WITHIN: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_O_DIRECTORY: Final = getattr(os, "O_DIRECTORY", 0)


@dataclass(frozen=True, slots=True)
class Stopped:
    """A container that does not run.

    Attributes:
        rootfs: with its writable directories, also when it is only read.
        layers: where the layers' mount points are. target: an empty directory to mount on.
        mounts: of its volumes: destination, source (a directory), options (`ro`, `subpath=`).
        readonly: its root may not be written.
    """

    rootfs: Rootfs
    layers: Path
    target: Path
    mounts: Sequence[Mapping[str, Any]]
    readonly: bool


def enter_running(kernel: Kernel, pidfd: int, own_users: bool) -> None:
    """See what the container's first process sees, in a copy of its mounts. OSError.

    What the kernel makes up (/proc, /sys, /dev) is no file of the container's: it is taken away.

    Args:
        own_users: it has a user namespace, whose root this process becomes: owners are then what
            the container sees, and nothing is left of the machine's rights.
    """
    kernel.setns(pidfd, CLONE_NEWNS | (CLONE_NEWUSER if own_users else 0))
    if own_users:
        kernel.setgroups(())
        kernel.setgid(0)
        kernel.setuid(0)
    kernel.unshare(CLONE_NEWNS)
    kernel.mount(None, "/", None, MS_REC | MS_PRIVATE, None)
    for path in _MADE_UP:
        try:
            kernel.umount(path, MNT_DETACH | UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):  # nothing is mounted there
                raise
    kernel.mount_setattr(AT_FDCWD, "/", True, MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID, 0)
    kernel.chdir("/")


def enter_stopped(kernel: Kernel, view: Stopped) -> None:
    """Mount its root and its volumes, where nobody else sees it, and go there. OSError."""
    kernel.unshare(CLONE_NEWNS)
    kernel.mount(None, "/", None, MS_REC | MS_PRIVATE, None)
    target = os.fspath(view.target)
    kernel.chdir(os.fspath(view.layers))
    flags = MS_NODEV | MS_NOSUID | (MS_RDONLY if view.readonly else 0)
    kernel.mount("overlay", target, "overlay", flags, overlay_options(view.rootfs))
    root = kernel.open(target, O_PATH | _O_DIRECTORY)
    for mount in view.mounts:
        _mount_volume(kernel, root, mount)
    kernel.chdir(target)
    kernel.chroot(".")
    kernel.chdir("/")
    kernel.close(root)


def open_in_root(kernel: Kernel, path: bytes, flags: int) -> int:
    """Open what `path` (absolute) is in the container; links are followed in it. OSError."""
    return kernel.openat2(AT_FDCWD, path, flags, RESOLVE_NO_MAGICLINKS)


def _mount_volume(kernel: Kernel, root: int, mount: Mapping[str, Any]) -> None:
    """As at a start; where the image has no place for it, it is left out."""
    options = mount.get("options") or ()
    subpath = next((text[8:] for text in options if text.startswith("subpath=")), "")
    try:
        place = _make_place(kernel, root, mount["destination"])
        source = kernel.open(mount["source"], O_PATH)
        found = kernel.openat2(source, subpath or ".", O_PATH, _WITHIN)
    except (FileNotFoundError, NotADirectoryError, FileExistsError):
        return
    if "copyup" in options:
        _populate(kernel, place, found, open_lock(kernel, mount["source"]))
    tree = kernel.open_tree("", False, found)
    readonly = MOUNT_ATTR_RDONLY if "ro" in options else 0
    kernel.mount_setattr(tree, "", False, MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID | readonly, 0)
    kernel.move_mount(tree, "", place)
    for fd in (tree, found, source, place):
        kernel.close(fd)


def _make_place(kernel: Kernel, root: int, path: str) -> int:
    """Open what `path` is below `root`, making directories where nothing is."""
    try:
        return kernel.openat2(root, path, O_PATH, _WITHIN)
    except FileNotFoundError:
        parent, _, name = path.rpartition("/")
        directory = _make_place(kernel, root, parent or "/")
        os.mkdir(name, 0o755, dir_fd=directory)
        kernel.close(directory)
        return kernel.openat2(root, path, O_PATH, _WITHIN)


def _populate(kernel: Kernel, place: int, volume: int, lock: int) -> None:
    """As at the container's first start, which this may come before."""
    flags = os.O_RDONLY | _O_DIRECTORY
    try:
        source = kernel.openat2(place, ".", flags, RESOLVE_NO_MAGICLINKS)
    except NotADirectoryError:
        return
    target = kernel.openat2(volume, ".", flags, RESOLVE_NO_MAGICLINKS)
    kernel.copy_contents(source, target, lock)
    for fd in (target, source, lock):
        kernel.close(fd)
