"""The container's mounts: options, file systems, binds, entering the root, masking.

Rules: *what the image says about a path is never believed outside of the image.* Bind sources are
taken as detached trees while the root is still the VM's; then the root is entered and the VM's
is gone; only then targets are resolved: a symlink or `..` in the image cannot lead out of it.
procfs and sysfs are mounted on real directories only, so that masks cannot be dodged.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wherry_guest.core.spec import Mount, SpecError
from wherry_guest.core.steps import SetupError, make_directories
from wherry_guest.core.syscalls import (
    AT_FDCWD,
    MNT_DETACH,
    MOUNT_ATTR__ATIME,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_STRICTATIME,
    MS_BIND,
    MS_DIRSYNC,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
)

if TYPE_CHECKING:
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel

FILESYSTEMS: Final = {
    "proc": "proc",
    "sysfs": "sysfs",
    "tmpfs": "tmpfs",
    "devpts": "devpts",
    "mqueue": "mqueue",
    "cgroup": "cgroup2",  # the spec's name for either version
    "cgroup2": "cgroup2",
}
"""The types that may stand in a spec, and the kernel's name for each."""

_REAL_DIRECTORY_ONLY: Final = ("proc", "sysfs", "cgroup2")

# mount(8)'s words: (flag to set, flag to clear)
_FLAGS: Final = {
    "ro": (MS_RDONLY, 0), "rw": (0, MS_RDONLY),
    "nosuid": (MS_NOSUID, 0), "suid": (0, MS_NOSUID),
    "nodev": (MS_NODEV, 0), "dev": (0, MS_NODEV),
    "noexec": (MS_NOEXEC, 0), "exec": (0, MS_NOEXEC),
    "sync": (MS_SYNCHRONOUS, 0), "async": (0, MS_SYNCHRONOUS),
    "dirsync": (MS_DIRSYNC, 0),
    "noatime": (MS_NOATIME, 0), "atime": (0, MS_NOATIME),
    "nodiratime": (MS_NODIRATIME, 0), "diratime": (0, MS_NODIRATIME),
    "relatime": (MS_RELATIME, 0), "norelatime": (0, MS_RELATIME),
    "strictatime": (MS_STRICTATIME, 0), "nostrictatime": (0, MS_STRICTATIME),
    "defaults": (0, 0),
}  # fmt: skip
_ATTRIBUTES: Final = {
    MS_RDONLY: MOUNT_ATTR_RDONLY,
    MS_NOSUID: MOUNT_ATTR_NOSUID,
    MS_NODEV: MOUNT_ATTR_NODEV,
    MS_NOEXEC: MOUNT_ATTR_NOEXEC,
    MS_NODIRATIME: MOUNT_ATTR_NODIRATIME,
}
_PROPAGATION: Final = ("private", "rprivate")  # what every mount of a container is


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Options by their meaning. `recursive`: rbind; `recursive_readonly`: rro; data: the rest.

    Two are Wherry's own and for binds of volumes: `subpath` is a path within the source, `copyup`
    fills an empty source with what the image has at the destination.
    """

    flags: int = 0
    cleared: int = 0
    data: str = ""
    recursive: bool = False
    recursive_readonly: bool = False
    subpath: str = ""
    copyup: bool = False


def parse_options(mount: Mount) -> MountOptions:
    """The meaning of `mount.options`; SpecError for one that is not supported."""
    flags = cleared = 0
    data: list[str] = []
    handled = ["bind", "rbind", "rro", *_PROPAGATION]
    subpath = ""
    if mount.type == "bind":
        own = next((option for option in mount.options if option.startswith(_SUBPATH)), _SUBPATH)
        handled += ["copyup", own]
        subpath = own.removeprefix(_SUBPATH)
    for option in mount.options:
        if option in _FLAGS:
            on, off = _FLAGS[option]
            flags, cleared = flags & ~off | on, cleared & ~on | off
        elif option in handled:
            continue
        elif mount.type == "bind" or ("=" not in option and option not in _VALUELESS):
            where = f"mounts[{mount.destination}].options"
            raise SpecError(f"{where}: {option!r} is not supported")
        else:
            data.append(option)
    return MountOptions(
        flags,
        cleared,
        ",".join(data),
        "rbind" in mount.options,
        "rro" in mount.options,
        subpath,
        "copyup" in mount.options,
    )


_SUBPATH: Final = "subpath="
_VALUELESS: Final = ("newinstance", "nsdelegate", "noswap", "inode32", "inode64")


@dataclass(frozen=True, slots=True)
class MakePrivate:
    """Let no mount below show outside of this namespace."""

    def describe(self) -> str:
        return "make mounts private"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.mount(None, "/", None, MS_REC | MS_PRIVATE, None)


@dataclass(frozen=True, slots=True)
class TakeBindSource:
    """Copy the mount at `source`, detached, with its flags, for the mount number `index`."""

    index: int
    source: str
    options: MountOptions

    def describe(self) -> str:
        return f"take {self.source} for a bind mount"

    def execute(self, kernel: Kernel, state: State) -> None:
        tree = self._open(kernel)
        attr_set, attr_clear = bind_attributes(self.options)
        if attr_set or attr_clear:
            kernel.mount_setattr(tree, "", False, attr_set, attr_clear)
        if self.options.recursive_readonly:
            kernel.mount_setattr(tree, "", True, MOUNT_ATTR_RDONLY, 0)
        state.trees[self.index] = tree

    def _open(self, kernel: Kernel) -> int:
        options = self.options
        if not options.subpath:
            return kernel.open_tree(self.source, options.recursive)
        # What is on the way may be another container's, which may change it right now.
        root = kernel.open(self.source, _O_PATH)
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        found = kernel.openat2(root, options.subpath, _O_PATH, resolve)
        tree = kernel.open_tree("", options.recursive, found)
        kernel.close(found)
        kernel.close(root)
        return tree


@dataclass(frozen=True, slots=True)
class Populate:
    """Fill the tree number `index`, when it is empty, with what the image has at `destination`.

    Stands before every mount: what is copied is the image's.
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
        kernel.copy_contents(source, target)
        kernel.close(target)
        kernel.close(source)


def bind_attributes(options: MountOptions) -> tuple[int, int]:
    """(attributes to set, to clear) for mount_setattr(2)."""
    attr_set = sum(attr for flag, attr in _ATTRIBUTES.items() if options.flags & flag)
    attr_clear = sum(attr for flag, attr in _ATTRIBUTES.items() if options.cleared & flag)
    atime = options.flags & (MS_NOATIME | MS_RELATIME | MS_STRICTATIME)
    if atime:  # the access time modes are one field: clear it, then set the mode
        attr_clear |= MOUNT_ATTR__ATIME
        attr_set |= MOUNT_ATTR_NOATIME if atime & MS_NOATIME else 0
        attr_set |= MOUNT_ATTR_STRICTATIME if atime & MS_STRICTATIME else 0
    return attr_set, attr_clear


@dataclass(frozen=True, slots=True)
class EnterRoot:
    """Make `path` the root and let go of the VM's."""

    path: str

    def describe(self) -> str:
        return f"make {self.path} the root"

    def execute(self, kernel: Kernel, state: State) -> None:
        # pivot_root(2), "pivot_root('.', '.')": the old root comes to lie on top of the new one.
        kernel.chdir(self.path)
        kernel.pivot_root(".", ".")
        kernel.umount(".", MNT_DETACH)
        kernel.chdir("/")


@dataclass(frozen=True, slots=True)
class AttachBind:
    """Put the tree number `index` at `destination`, which is made when it is missing."""

    index: int
    source: str
    destination: str

    def describe(self) -> str:
        return f"bind {self.source} to {self.destination}"

    def execute(self, kernel: Kernel, state: State) -> None:
        tree = state.trees.pop(self.index)
        target = kernel.realpath(self.destination)
        if stat.S_ISDIR(kernel.stat(tree).mode):
            make_directories(kernel, target)
        else:
            make_file(kernel, target)
        kernel.move_mount(tree, target)
        kernel.close(tree)


@dataclass(frozen=True, slots=True)
class MountFilesystem:
    """Mount a new instance of a file system; the mount point is made when it is missing."""

    fstype: str
    source: str
    destination: str
    flags: int
    data: str

    def describe(self) -> str:
        return f"mount {self.fstype} on {self.destination}"

    def execute(self, kernel: Kernel, state: State) -> None:
        target = kernel.realpath(self.destination)
        if self.fstype in _REAL_DIRECTORY_ONLY and target != self.destination:
            raise SetupError(f"{self.describe()}: the image has a symbolic link on this path")
        make_directories(kernel, target)
        kernel.mount(self.source, target, self.fstype, self.flags, self.data or None)


@dataclass(frozen=True, slots=True)
class MaskPath:
    """Hide what stands at `path`, if anything does: a file by /dev/null, a directory by nothing."""

    path: str

    def describe(self) -> str:
        return f"mask {self.path}"

    def execute(self, kernel: Kernel, state: State) -> None:
        try:
            mode = kernel.stat(self.path).mode
        except (FileNotFoundError, NotADirectoryError):
            return
        if not stat.S_ISDIR(mode):
            self._bind_null(kernel)
        elif state.masked_directory is not None:
            kernel.mount(state.masked_directory, self.path, None, MS_BIND, None)
        else:
            kernel.mount("tmpfs", self.path, "tmpfs", MS_RDONLY, "size=4k,mode=755")
            state.masked_directory = self.path

    def _bind_null(self, kernel: Kernel) -> None:
        fd = kernel.open("/dev/null", _O_PATH)
        if not kernel.stat(fd).is_character_device(*_NULL):
            raise SetupError(f"{self.describe()}: the container's /dev/null is something else")
        tree = kernel.open_tree("", False, fd)
        kernel.move_mount(tree, self.path)
        kernel.close(tree)
        kernel.close(fd)


_O_PATH: Final = 0o10000000  # asm-generic/fcntl.h
_O_DIRECTORY: Final = getattr(os, "O_DIRECTORY", 0)  # it differs between architectures
_NULL: Final = (1, 3)  # Documentation/admin-guide/devices.txt


@dataclass(frozen=True, slots=True)
class ReadonlyPath:
    """Make what stands at `path` read-only, if anything does."""

    path: str

    def describe(self) -> str:
        return f"make {self.path} read-only"

    def execute(self, kernel: Kernel, state: State) -> None:
        try:
            tree = kernel.open_tree(self.path, True)
        except (FileNotFoundError, NotADirectoryError):
            return
        kernel.mount_setattr(tree, "", True, MOUNT_ATTR_RDONLY, 0)
        kernel.move_mount(tree, self.path)
        kernel.close(tree)


@dataclass(frozen=True, slots=True)
class ReadonlyRoot:
    """Make the root itself, not what is mounted in it, read-only."""

    def describe(self) -> str:
        return "make the root read-only"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.mount_setattr(AT_FDCWD, "/", False, MOUNT_ATTR_RDONLY, 0)


def make_file(kernel: Kernel, path: str) -> None:
    """Make sure that something that is not a directory stands at `path`, to mount a file on."""
    make_directories(kernel, path.rpartition("/")[0] or "/")
    try:
        kernel.close(kernel.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError:
        return


def plan_binds(mounts: tuple[Mount, ...]) -> list[TakeBindSource]:
    """The steps that come before `EnterRoot`."""
    return [
        TakeBindSource(index, mount.source, parse_options(mount))
        for index, mount in enumerate(mounts)
        if mount.type == "bind"
    ]


def plan_populating(mounts: tuple[Mount, ...]) -> list[Populate]:
    """The steps between entering the root and the first mount in it."""
    return [
        Populate(index, mount.destination)
        for index, mount in enumerate(mounts)
        if mount.type == "bind" and "copyup" in mount.options
    ]


def plan_mounts(mounts: tuple[Mount, ...]) -> list[AttachBind | MountFilesystem]:
    """The steps that come after it, in the spec's order; SpecError for a type it cannot be."""
    steps: list[AttachBind | MountFilesystem] = []
    for index, mount in enumerate(mounts):
        if mount.type == "bind":
            steps.append(AttachBind(index, mount.source, mount.destination))
            continue
        if mount.type not in FILESYSTEMS:
            raise SpecError(f"mounts[{mount.destination}].type {mount.type!r} is not supported")
        options = parse_options(mount)
        fstype = FILESYSTEMS[mount.type]
        source = mount.source or fstype
        data = options.data
        steps.append(MountFilesystem(fstype, source, mount.destination, options.flags, data))
    return steps
