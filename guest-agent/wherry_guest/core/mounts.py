"""The container's mounts: what is taken from outside, and what is mounted in the container.

Rules: *what the image says about a path is never believed outside of the image.* Bind sources, and
file systems that may need paths of the runtime's, are taken as detached trees while the root is
still the runtime's; then the root is entered and the old one is gone; only then targets are
resolved: a symlink or `..` in the image cannot lead out of it. procfs and sysfs are mounted on real
directories only, so that masks cannot be dodged.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wherry_guest.core.fields import SpecError
from wherry_guest.core.mount_options import (
    FILESYSTEMS,
    PROPAGATION,
    MountOptions,
    attributes,
    parse_options,
)
from wherry_guest.core.spec import Mount
from wherry_guest.core.steps import SetupError, make_directories
from wherry_guest.core.syscalls import (
    AT_FDCWD,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    MS_DIRSYNC,
    MS_RDONLY,
    MS_SYNCHRONOUS,
    O_PATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
)
from wherry_guest.core.userns import IdMaps, id_map_tree, user_namespace

if TYPE_CHECKING:
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel

REAL_DIRECTORY_ONLY: Final = ("proc", "sysfs", "cgroup2")
_VISIBLE_FIRST: Final = ("proc", "sysfs")
"""In a user namespace the kernel gives new instances of these only where an old one can be seen
(fs/namespace.c, mount_too_revealing), which ends with the old root."""

_SUPERBLOCK_FLAGS: Final = {MS_RDONLY: "ro", MS_SYNCHRONOUS: "sync", MS_DIRSYNC: "dirsync"}
_O_DIRECTORY: Final = getattr(os, "O_DIRECTORY", 0)  # it differs between architectures


@dataclass(frozen=True, slots=True)
class TakeBindSource:
    """Copy the mount at `source`, detached, with its flags, for the mount number `index`.

    Args:
        propagation: the modes to give it, in order.
        id_maps: its own, where the options want an id-mapped mount; None: the container's.
    """

    index: int
    source: str
    options: MountOptions
    propagation: tuple[str, ...] = ()
    id_maps: IdMaps | None = None

    def describe(self) -> str:
        return f"take {self.source} for a bind mount (mounts)"

    def execute(self, kernel: Kernel, state: State) -> None:
        tree = self._open(kernel)
        options = self.options
        change = attributes(options.flags, options.cleared)
        if any(change):
            kernel.mount_setattr(tree, "", False, *change)
        change = attributes(options.recursive_flags, options.recursive_cleared)
        if any(change):
            kernel.mount_setattr(tree, "", True, *change)
        for mode in self.propagation:
            flag, recursive = PROPAGATION[mode]
            kernel.set_propagation(tree, "", recursive, flag)
        if options.id_map or self.id_maps is not None:
            self._map_ids(kernel, state, tree)
        state.trees[self.index] = tree
        if options.copyup:
            state.locks[self.index] = open_lock(kernel, self.source)

    def _map_ids(self, kernel: Kernel, state: State, tree: int) -> None:
        recursive = self.options.id_map == "ridmap"
        if self.id_maps is not None:
            id_map_tree(kernel, tree, recursive, self.id_maps)
        else:
            kernel.set_id_map(tree, recursive, user_namespace(state, self.describe()))

    def _open(self, kernel: Kernel) -> int:
        options = self.options
        if not options.subpath:
            return kernel.open_tree(self.source, options.recursive)
        # What is on the way may be another container's, which may change it right now.
        root = kernel.open(self.source, O_PATH)
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        found = kernel.openat2(root, options.subpath, O_PATH, resolve)
        tree = kernel.open_tree("", options.recursive, found)
        kernel.close(found)
        kernel.close(root)
        return tree


@dataclass(frozen=True, slots=True)
class TakeFilesystem:
    """Make a new file system, detached, for the mount number `index`."""

    index: int
    fstype: str
    source: str
    options: MountOptions

    def describe(self) -> str:
        return f"open the file system {self.fstype} (mounts)"

    def execute(self, kernel: Kernel, state: State) -> None:
        fd = kernel.fsopen(self.fstype)
        kernel.fsconfig(fd, FSCONFIG_SET_STRING, "source", self.source)
        if self.fstype not in _VISIBLE_FIRST:  # there they are the mount's alone
            for flag, word in _SUPERBLOCK_FLAGS.items():
                if self.options.flags & flag:
                    kernel.fsconfig(fd, FSCONFIG_SET_FLAG, word, None)
        for option in filter(None, self.options.data.split(",")):
            key, equals, value = option.partition("=")
            if equals:
                kernel.fsconfig(fd, FSCONFIG_SET_STRING, key, value)
            else:
                kernel.fsconfig(fd, FSCONFIG_SET_FLAG, key, None)
        kernel.fsconfig(fd, FSCONFIG_CMD_CREATE, None, None)
        attr_set, _ = attributes(self.options.flags, 0)
        state.trees[self.index] = kernel.fsmount(fd, attr_set)
        kernel.close(fd)


@dataclass(frozen=True, slots=True)
class Populate:
    """Fill the tree number `index`, when it is empty, with what the image has at `destination`.

    Stands before every mount: what is copied is the image's. Of those who would fill it at the same
    time one does, the others wait.
    """

    index: int
    destination: str

    def describe(self) -> str:
        return f"copy what the image has in {self.destination} to the volume"

    def execute(self, kernel: Kernel, state: State) -> None:
        tree = state.trees[self.index]
        if not stat.S_ISDIR(kernel.stat(tree).mode):
            return
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        directory = os.O_RDONLY | _O_DIRECTORY
        try:
            source = kernel.openat2(AT_FDCWD, self.destination, directory, resolve)
        except (FileNotFoundError, NotADirectoryError):
            return
        target = kernel.openat2(tree, ".", directory, 0)
        lock = state.locks[self.index]
        kernel.copy_contents(source, target, lock)
        for fd in (target, source, lock):
            kernel.close(fd)


def open_lock(kernel: Kernel, source: str) -> int:
    """Where those who fill `source` wait for each other: the directory that it is in, since no
    container gets there, who could keep others from starting."""
    return kernel.open(source.rpartition("/")[0] or "/", os.O_RDONLY | _O_DIRECTORY)


@dataclass(frozen=True, slots=True)
class AttachBind:
    """Put the tree number `index` at `destination`, which is made when it is missing."""

    index: int | str
    source: str
    destination: str

    def describe(self) -> str:
        return f"bind {self.source} to {self.destination}"

    def execute(self, kernel: Kernel, state: State) -> None:
        target = kernel.realpath(self.destination)
        if stat.S_ISDIR(kernel.stat(state.trees[self.index]).mode):
            make_directories(kernel, target)
        else:
            make_file(kernel, target)
        _attach(kernel, state, self.index, target)


@dataclass(frozen=True, slots=True)
class AttachFilesystem:
    """Put the file system that was taken as number `index` at `destination`."""

    index: int
    fstype: str
    destination: str
    options: MountOptions

    def describe(self) -> str:
        return f"mount {self.fstype} on {self.destination}"

    def execute(self, kernel: Kernel, state: State) -> None:
        target = _mount_point(kernel, self.describe(), self.fstype, self.destination)
        _attach(kernel, state, self.index, target)
        set_propagation(kernel, target, self.options)


@dataclass(frozen=True, slots=True)
class MountFilesystem:
    """Mount a new instance of a file system; the mount point is made when it is missing."""

    fstype: str
    source: str
    destination: str
    options: MountOptions

    def describe(self) -> str:
        return f"mount {self.fstype} on {self.destination}"

    def execute(self, kernel: Kernel, state: State) -> None:
        options = self.options
        target = _mount_point(kernel, self.describe(), self.fstype, self.destination)
        covered = kernel.open(target, os.O_RDONLY | _O_DIRECTORY) if options.tmpcopyup else None
        flags = (options.flags | options.recursive_flags) & ~options.recursive_cleared
        if covered is not None:
            flags &= ~MS_RDONLY
        kernel.mount(self.source, target, self.fstype, flags, options.data or None)
        if covered is not None:
            self._copy(kernel, covered, target)
        set_propagation(kernel, target, options)

    def _copy(self, kernel: Kernel, covered: int, target: str) -> None:
        fresh = kernel.open(target, os.O_RDONLY | _O_DIRECTORY)
        kernel.copy_contents(covered, fresh)
        kernel.close(fresh)
        kernel.close(covered)
        if self.options.flags & MS_RDONLY:
            attr_set, _ = attributes(MS_RDONLY, 0)
            kernel.mount_setattr(AT_FDCWD, target, False, attr_set, 0)


def _mount_point(kernel: Kernel, step: str, fstype: str, destination: str) -> str:
    target = kernel.realpath(destination)
    if fstype in REAL_DIRECTORY_ONLY and target != destination:
        raise SetupError(f"{step}: the image has a symbolic link on this path")
    make_directories(kernel, target)
    return target


def _attach(kernel: Kernel, state: State, index: int | str, target: str) -> None:
    tree = state.trees.pop(index)
    kernel.move_mount(tree, target)
    kernel.close(tree)


def set_propagation(kernel: Kernel, target: str, options: MountOptions) -> None:
    """Give the mount at `target` the modes that its options name."""
    for mode in options.propagation:
        flag, recursive = PROPAGATION[mode]
        kernel.set_propagation(AT_FDCWD, target, recursive, flag)


def make_file(kernel: Kernel, path: str) -> None:
    """Make sure that something that is not a directory stands at `path`, to mount a file on."""
    make_directories(kernel, path.rpartition("/")[0] or "/")
    try:
        kernel.close(kernel.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError:
        return


def related(mounts: tuple[Mount, ...]) -> bool:
    """Whether a bind mount stays related to its source."""
    return any(mount.type == "bind" and parse_options(mount).related for mount in mounts)


def plan_binds(
    mounts: tuple[Mount, ...], shared_outside: bool, user_namespace: bool
) -> list[TakeBindSource]:
    """The steps that take bind sources, before `EnterRoot`.

    Args:
        shared_outside: mounts are as the runtime has them: what names no propagation is made
            private here.
        user_namespace: the container has one of its own.
    """
    steps = []
    for index, mount in enumerate(mounts):
        if mount.type != "bind":
            continue
        options = parse_options(mount)
        if options.id_map and mount.id_maps is None and not user_namespace:
            where = f"mounts[{mount.destination}]"
            raise SpecError(
                f"{where}.options: {options.id_map!r} needs uidMappings and gidMappings"
            )
        modes = options.propagation or (("rprivate",) if shared_outside else ())
        steps.append(TakeBindSource(index, mount.source, options, modes, mount.id_maps))
    return steps


def plan_filesystems(
    mounts: tuple[Mount, ...], visible: bool, foreign: bool
) -> list[TakeFilesystem]:
    """The steps that make file systems before `EnterRoot`.

    Args:
        visible: proc and sysfs, which a user namespace gets only there.
        foreign: all types but those that are mounted within the container.
    """
    steps = []
    for index, mount in enumerate(mounts):
        if mount.type == "bind":
            continue
        known = mount.type in FILESYSTEMS
        fstype = FILESYSTEMS.get(mount.type, mount.type)
        if (visible and fstype in _VISIBLE_FIRST) if known else foreign:
            options = parse_options(mount)
            steps.append(TakeFilesystem(index, fstype, mount.source or fstype, options))
    return steps


def plan_populating(mounts: tuple[Mount, ...]) -> list[Populate]:
    """The steps between entering the root and the first mount in it."""
    return [
        Populate(index, mount.destination)
        for index, mount in enumerate(mounts)
        if mount.type == "bind" and "copyup" in mount.options
    ]


def plan_mounts(
    mounts: tuple[Mount, ...], user_namespace: bool
) -> list[AttachBind | AttachFilesystem | MountFilesystem]:
    """The steps that come after `EnterRoot`, in the spec's order."""
    steps: list[AttachBind | AttachFilesystem | MountFilesystem] = []
    for index, mount in enumerate(mounts):
        if mount.type == "bind":
            steps.append(AttachBind(index, mount.source, mount.destination))
            continue
        options = parse_options(mount)
        if not mount.type:
            raise SpecError(f"mounts[{mount.destination}].type is missing")
        fstype = FILESYSTEMS.get(mount.type, mount.type)
        if mount.id_maps is not None:
            where = f"mounts[{mount.destination}].uidMappings"
            raise SpecError(f"{where} is not supported for {mount.type}: only for bind mounts")
        if mount.type not in FILESYSTEMS or (user_namespace and fstype in _VISIBLE_FIRST):
            steps.append(AttachFilesystem(index, fstype, mount.destination, options))
        else:
            source = mount.source or fstype
            steps.append(MountFilesystem(fstype, source, mount.destination, options))
    return steps
