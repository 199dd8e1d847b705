"""The steps of namespaces, root, mounts, devices, as flat programs say them; see `core.flatten`."""

from __future__ import annotations

import errno
import stat
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

from wherry_guest.core import syscalls
from wherry_guest.core.devices import TYPES, MakeDevice, MakeLink
from wherry_guest.core.flat import Label, NotFlat, Result, encoded
from wherry_guest.core.flat_making import (
    MISSING,
    MOUNTS,
    O_CREAT,
    O_EXCL,
    O_RDONLY,
    O_WRONLY,
    Making,
)
from wherry_guest.core.masks import NULL, MaskPath, ReadonlyPath
from wherry_guest.core.mount_options import PROPAGATION, attributes
from wherry_guest.core.mounts import (
    REAL_DIRECTORY_ONLY,
    AttachBind,
    MountFilesystem,
    TakeBindSource,
)
from wherry_guest.core.namespaces import (
    FLAGS,
    JoinNamespace,
    NewNamespaces,
    SetDomainname,
    SetHostname,
)
from wherry_guest.core.netlink import LoopbackUp
from wherry_guest.core.overlay import MountOverlay, MountSingleLayer
from wherry_guest.core.root import EnterRoot, MakePrivate, ReadonlyRoot, SetRootPropagation
from wherry_guest.core.syscalls import AT_FDCWD

_AF_INET: Final = 2  # linux/socket.h
_SOCK_DGRAM: Final = 2
_SIOCSIFFLAGS: Final = 0x8914  # uapi/linux/sockios.h
_IFF_UP: Final = 1  # uapi/linux/if.h
_IFREQ: Final = struct.Struct("<16sh22x")
_OPEN_HOW: Final = struct.Struct("<QQQ")  # uapi/linux/openat2.h
_RESOLVE_NO_SYMLINKS: Final = 0x04


def join_namespace(making: Making, step: JoinNamespace) -> None:
    fd = making.open(making.flat.text(step.path), O_RDONLY)
    making.flat.call("setns", fd, FLAGS[step.kind])
    making.close(fd)


def new_namespaces(making: Making, step: NewNamespaces) -> None:
    network = making.fds.network
    kinds = [kind for kind in step.kinds if kind != "network" or network < 0]
    making.flat.call("unshare", sum(FLAGS[kind] for kind in kinds))
    if network >= 0:
        making.flat.call("setns", network, FLAGS["network"])
        making.close(network)
    if "mount" in step.kinds:  # for PID 1, so that their end is not this process's business
        mounts = making.open(making.flat.text("/proc/self/ns/mnt"), O_RDONLY)
        making.send_descriptor(mounts, MOUNTS)
        held = Result()
        held.place = mounts.place
        making.close(held)


def loopback_up(making: Making, step: LoopbackUp) -> None:
    if making.fds.network < 0:
        set_loopback_up(making)


def set_loopback_up(making: Making) -> None:
    flat = making.flat
    fd = flat.call("socket", _AF_INET, _SOCK_DGRAM | syscalls.OPEN_TREE_CLOEXEC, 0)
    flat.call("ioctl", fd, _SIOCSIFFLAGS, flat.data(_IFREQ.pack(b"lo", _IFF_UP)))
    making.close(fd)


def set_hostname(making: Making, step: SetHostname) -> None:
    making.flat.call("sethostname", making.variable(step.name), len(encoded(step.name)))


def set_domainname(making: Making, step: SetDomainname) -> None:
    name = step.name
    making.flat.call("setdomainname", making.flat.text(name), len(encoded(name)))


def make_private(making: Making, step: MakePrivate) -> None:
    flags = syscalls.MS_REC | syscalls.MS_PRIVATE
    making.flat.call("mount", 0, making.flat.text("/"), 0, flags, 0)


def take_bind_source(making: Making, step: TakeBindSource) -> None:
    flat, options = making.flat, step.options
    if options.subpath or options.copyup or options.id_map or step.id_maps is not None:
        raise NotFlat("this bind mount takes more than a call")
    flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
    flags |= syscalls.AT_RECURSIVE if options.recursive else 0
    tree = flat.call("open_tree", AT_FDCWD, making.variable(step.source), flags)
    here = flat.text("")
    for recursive, change in (
        (False, attributes(options.flags, options.cleared)),
        (True, attributes(options.recursive_flags, options.recursive_cleared)),
    ):
        if any(change):
            making.set_mount(tree, here, recursive, change)
    for mode in step.propagation:
        flag, recursive = PROPAGATION[mode]
        making.set_mount(tree, here, recursive, (0, 0), flag)
    making.trees[step.index] = tree


def mount_overlay(making: Making, step: MountOverlay) -> None:
    flat, overlay = making.flat, making.flat.text("overlay")
    flat.call("chdir", flat.text(step.layers))
    options = making.variable(step.options)
    flat.call("mount", overlay, flat.text(step.target), overlay, 0, options)


def mount_single_layer(making: Making, step: MountSingleLayer) -> None:
    flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
    path = making.variable(f"{step.layers}/{step.name}")
    tree = making.flat.call("open_tree", AT_FDCWD, path, flags)
    making.attach(tree, step.target)


def enter_root(making: Making, step: EnterRoot) -> None:
    flat = making.flat
    if not step.path or not step.pivot:
        raise NotFlat("the root is entered otherwise")
    making.close(making.fds.cgroup)
    flat.call("chdir", flat.text(step.path))
    here = flat.text(".")
    flat.call("pivot_root", here, here)
    flat.call("umount2", here, syscalls.MNT_DETACH)
    flat.call("chdir", flat.text("/"))
    making.made = set()


def attach_bind(making: Making, step: AttachBind) -> None:
    flat, tree, path = making.flat, making.trees[step.index], step.destination
    attach, is_file = Label(), Label()
    making.directories(path.rpartition("/")[0] or "/")
    making.statx(tree)
    making.check_type(stat.S_IFDIR, is_file)
    flat.call("mkdirat", AT_FDCWD, flat.text(path), 0o755, taken=(errno.EEXIST,))
    flat.goto(attach)
    flat.place(is_file)
    flags = O_WRONLY | O_CREAT | O_EXCL | syscalls.OPEN_TREE_CLOEXEC
    args = (AT_FDCWD, flat.text(path), flags, 0o644)
    made = flat.call("openat", *args, taken=(errno.EEXIST,), then=attach)
    making.close(made)
    flat.place(attach)
    making.attach(tree, path)
    making.covered(path)


def mount_filesystem(making: Making, step: MountFilesystem) -> None:
    flat, options, path = making.flat, step.options, step.destination
    if options.tmpcopyup:
        raise NotFlat("its contents are copied")
    making.directories(path)
    where = flat.text(path)
    if step.fstype in REAL_DIRECTORY_ONLY:
        how = _OPEN_HOW.pack(
            syscalls.O_PATH | making.directory | syscalls.OPEN_TREE_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS
        )
        making.close(flat.call("openat2", AT_FDCWD, where, flat.data(how), len(how)))
    flags = (options.flags | options.recursive_flags) & ~options.recursive_cleared
    data = flat.text(options.data) if options.data else 0
    flat.call("mount", flat.text(step.source), where, flat.text(step.fstype), flags, data)
    for mode in options.propagation:
        flag, recursive = PROPAGATION[mode]
        making.set_mount(AT_FDCWD, where, recursive, (0, 0), flag)
    making.covered(path)


def make_device(making: Making, step: MakeDevice) -> None:
    flat, device = making.flat, step.device
    making.directories(device.path.rpartition("/")[0] or "/")
    path = flat.text(device.path)
    mode = TYPES[device.type] | device.mode
    flat.call("mknodat", AT_FDCWD, path, mode, _device_number(device.major, device.minor))
    flat.call("fchmodat", AT_FDCWD, path, device.mode)
    if device.uid or device.gid:
        flat.call("fchownat", AT_FDCWD, path, device.uid, device.gid, 0)
    if device.path == "/dev/null":
        making.null = device.type in "cu" and (device.major, device.minor) == NULL


def make_link(making: Making, step: MakeLink) -> None:
    flat = making.flat
    args = (flat.text(step.target), AT_FDCWD, flat.text(step.path))
    flat.call("symlinkat", *args, taken=(errno.EEXIST,))


def set_root_propagation(making: Making, step: SetRootPropagation) -> None:
    flag, recursive = PROPAGATION[step.mode]
    making.set_mount(AT_FDCWD, making.flat.text("/"), recursive, (0, 0), flag)


def readonly_root(making: Making, step: ReadonlyRoot) -> None:
    change = (syscalls.MOUNT_ATTR_RDONLY, 0)
    making.set_mount(AT_FDCWD, making.flat.text("/"), False, change)


def readonly_path(making: Making, step: ReadonlyPath) -> None:
    flat, past = making.flat, Label()
    flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | syscalls.AT_RECURSIVE
    args = (AT_FDCWD, flat.text(step.path), flags)
    tree = flat.call("open_tree", *args, taken=MISSING, then=past)
    making.set_mount(tree, flat.text(""), True, (syscalls.MOUNT_ATTR_RDONLY, 0))
    making.attach(tree, step.path)
    flat.place(past)


def mask_path(making: Making, step: MaskPath) -> None:
    if not making.null:
        raise NotFlat("/dev/null may be something else")
    flat, past, is_file, again = making.flat, Label(), Label(), Label()
    path = flat.text(step.path)
    making.statx(AT_FDCWD, step.path, taken=MISSING, then=past)
    making.check_type(stat.S_IFDIR, is_file)
    if making.masked is None:
        making.masked = flat.data(bytes(8))
    flat.check(making.masked, 0xFFFFFFFF, 0, again)
    tmpfs = flat.text("tmpfs")
    flat.call("mount", tmpfs, path, tmpfs, syscalls.MS_RDONLY, flat.text("size=4k,mode=755"))
    flat.copy(making.masked, flat.pointers([path]))
    flat.goto(past)
    flat.place(again)
    first = Result()
    first.place = making.masked
    flat.call("mount", first, path, 0, syscalls.MS_BIND, 0)
    flat.goto(past)
    flat.place(is_file)
    flat.call("mount", flat.text("/dev/null"), path, 0, syscalls.MS_BIND, 0)
    flat.place(past)


def _device_number(major: int, minor: int) -> int:
    """new_encode_dev, include/linux/kdev_t.h"""
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


STEPS: Final[Mapping[type, Callable[[Making, Any], None]]] = {
    JoinNamespace: join_namespace,
    NewNamespaces: new_namespaces,
    LoopbackUp: loopback_up,
    SetHostname: set_hostname,
    SetDomainname: set_domainname,
    MakePrivate: make_private,
    TakeBindSource: take_bind_source,
    MountOverlay: mount_overlay,
    MountSingleLayer: mount_single_layer,
    EnterRoot: enter_root,
    AttachBind: attach_bind,
    MountFilesystem: mount_filesystem,
    MakeDevice: make_device,
    MakeLink: make_link,
    SetRootPropagation: set_root_propagation,
    ReadonlyRoot: readonly_root,
    ReadonlyPath: readonly_path,
    MaskPath: mask_path,
}
