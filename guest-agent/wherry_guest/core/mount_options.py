"""Mount options by their meaning: mount(8)'s words to flags, attributes, propagation and data.

Rules: pure. A word that has no meaning for this kind of mount is an error that names the mount;
nothing is dropped. The words are the runtime spec's (config.md, "Linux mount options").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from wherry_guest.core.fields import SpecError
from wherry_guest.core.spec import Mount
from wherry_guest.core.syscalls import (
    MOUNT_ATTR__ATIME,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_STRICTATIME,
    MS_DIRSYNC,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_PRIVATE,
    MS_RDONLY,
    MS_RELATIME,
    MS_SHARED,
    MS_SLAVE,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
    MS_UNBINDABLE,
)

FILESYSTEMS: Final = {
    "proc": "proc",
    "sysfs": "sysfs",
    "tmpfs": "tmpfs",
    "devpts": "devpts",
    "mqueue": "mqueue",
    "cgroup": "cgroup2",  # the spec's name for either version
    "cgroup2": "cgroup2",
}
"""The types that are mounted within the container, and the kernel's name for each; any other one
may need paths of the runtime's and is mounted before the root is entered."""

PROPAGATION: Final = {
    # mount(2): (mode, whether for all mounts below too)
    "private": (MS_PRIVATE, False), "rprivate": (MS_PRIVATE, True),
    "shared": (MS_SHARED, False), "rshared": (MS_SHARED, True),
    "slave": (MS_SLAVE, False), "rslave": (MS_SLAVE, True),
    "unbindable": (MS_UNBINDABLE, False), "runbindable": (MS_UNBINDABLE, True),
}  # fmt: skip
RELATED: Final = ("shared", "rshared", "slave", "rslave")
"""The modes that keep a mount related to the one that it was copied from."""

_FLAGS: Final = {
    # (flag to set, flag to clear)
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
    "nosymfollow": (MS_NOSYMFOLLOW, 0), "symfollow": (0, MS_NOSYMFOLLOW),
    "defaults": (0, 0),
}  # fmt: skip
_NOT_OF_A_MOUNT: Final = MS_SYNCHRONOUS | MS_DIRSYNC  # they are the file system's
_ATTRIBUTES: Final = {
    MS_RDONLY: MOUNT_ATTR_RDONLY,
    MS_NOSUID: MOUNT_ATTR_NOSUID,
    MS_NODEV: MOUNT_ATTR_NODEV,
    MS_NOEXEC: MOUNT_ATTR_NOEXEC,
    MS_NODIRATIME: MOUNT_ATTR_NODIRATIME,
    MS_NOSYMFOLLOW: MOUNT_ATTR_NOSYMFOLLOW,
}
_RECURSIVE: Final = {
    f"r{word}": flags
    for word, flags in _FLAGS.items()
    if word != "defaults" and not (flags[0] | flags[1]) & _NOT_OF_A_MOUNT
}
_ID_MAPS: Final = ("idmap", "ridmap")
_SUBPATH: Final = "subpath="
_VALUELESS: Final = ("newinstance", "nsdelegate", "noswap", "inode32", "inode64")

MODES: Final = tuple(
    sorted({*_FLAGS, *_RECURSIVE, *PROPAGATION, *_ID_MAPS, "bind", "rbind", "tmpcopyup"})
)
"""Every word that is understood, for `features`."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Options by their meaning; flags are mount(2)'s.

    Two are Wherry's own and for binds of volumes: `subpath` is a path within the source, `copyup`
    fills an empty source with what the image has at the destination.

    Args:
        recursive: rbind. recursive_flags, recursive_cleared: of `rro` and its kin.
        data: what is the file system's business. propagation: as written, in order.
        id_map: "", "idmap" or "ridmap". tmpcopyup: `copyup` for a tmpfs.
    """

    flags: int = 0
    cleared: int = 0
    data: str = ""
    recursive: bool = False
    recursive_flags: int = 0
    recursive_cleared: int = 0
    propagation: tuple[str, ...] = ()
    id_map: str = ""
    subpath: str = ""
    copyup: bool = False
    tmpcopyup: bool = False

    @property
    def related(self) -> bool:
        """Whether the mount stays related to its source."""
        return any(mode in RELATED for mode in self.propagation)


def parse_options(mount: Mount) -> MountOptions:
    """The meaning of `mount.options`; SpecError for one that has none."""
    flags = cleared = recursive_flags = recursive_cleared = 0
    bind = mount.type == "bind"
    data: list[str] = []
    subpath = ""
    for option in mount.options:
        if option in _FLAGS and not (bind and sum(_FLAGS[option]) & _NOT_OF_A_MOUNT):
            on, off = _FLAGS[option]
            flags, cleared = flags & ~off | on, cleared & ~on | off
        elif option in _RECURSIVE:
            on, off = _RECURSIVE[option]
            recursive_flags, recursive_cleared = (
                recursive_flags & ~off | on,
                recursive_cleared & ~on | off,
            )
        elif bind and option.startswith(_SUBPATH) and not subpath:
            subpath = option.removeprefix(_SUBPATH)
        elif option in PROPAGATION or option in _words_of(mount.type):
            continue
        elif bind or not _is_data(mount.type, option):
            where = f"mounts[{mount.destination}].options"
            raise SpecError(f"{where}: {option!r} is not supported")
        else:
            data.append(option)
    return MountOptions(
        flags,
        cleared,
        ",".join(data),
        "rbind" in mount.options,
        recursive_flags,
        recursive_cleared,
        tuple(option for option in mount.options if option in PROPAGATION),
        next((option for option in mount.options if option in _ID_MAPS), ""),
        subpath,
        bind and "copyup" in mount.options,
        "tmpcopyup" in mount.options,
    )


def _words_of(kind: str) -> tuple[str, ...]:
    """The words that are handled by name for this kind of mount."""
    if kind == "bind":
        return ("bind", "rbind", "copyup", *_ID_MAPS)
    return ("tmpcopyup",) if kind == "tmpfs" else ()


def _is_data(kind: str, option: str) -> bool:
    """Whether the file system itself may understand `option`."""
    return kind not in FILESYSTEMS or "=" in option or option in _VALUELESS


def attributes(flags: int, cleared: int) -> tuple[int, int]:
    """(attributes to set, to clear) for mount_setattr(2), from mount(2)'s flags."""
    attr_set = sum(attr for flag, attr in _ATTRIBUTES.items() if flags & flag)
    attr_clear = sum(attr for flag, attr in _ATTRIBUTES.items() if cleared & flag)
    atime = flags & (MS_NOATIME | MS_RELATIME | MS_STRICTATIME)
    if atime:  # the access time modes are one field: clear it, then set the mode
        attr_clear |= MOUNT_ATTR__ATIME
        attr_set |= MOUNT_ATTR_NOATIME if atime & MS_NOATIME else 0
        attr_set |= MOUNT_ATTR_STRICTATIME if atime & MS_STRICTATIME else 0
    return attr_set, attr_clear
