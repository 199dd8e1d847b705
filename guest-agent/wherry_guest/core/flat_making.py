"""What the parts of a flat program share while it is made: descriptors, places, small idioms. Pure.

A descriptor of the process is a number that is known beforehand (what came with the message, in its
order) or the result of a call.
"""

from __future__ import annotations

import errno
import posixpath
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from wherry_guest.core.flat import Data, Flat, Label, NotFlat, Result
from wherry_guest.core.syscalls import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    MOVE_MOUNT_F_EMPTY_PATH,
)

if TYPE_CHECKING:
    from wherry_guest.core.flat import Argument

FIRST: Final = 4
"""The number of the first descriptor that comes with a message: 3 is the cradle's own."""

MOUNTS: Final = b"mounts"
"""What a program says when it sends PID 1 its mount namespace."""

# asm-generic/fcntl.h
O_RDONLY: Final = 0
O_WRONLY: Final = 1
O_RDWR: Final = 2
O_CREAT: Final = 0o100
O_EXCL: Final = 0o200
O_NOCTTY: Final = 0o400
O_NONBLOCK: Final = 0o4000
O_CLOEXEC: Final = 0o2000000

_DIRECTORY: Final[Mapping[str, int]] = {"x86_64": 0o200000, "aarch64": 0o40000}
_NOFOLLOW: Final[Mapping[str, int]] = {"x86_64": 0o400000, "aarch64": 0o100000}
"""O_DIRECTORY and O_NOFOLLOW: asm-generic/fcntl.h, and arch/arm64's."""

_MOVE_MOUNT_T_SYMLINKS: Final = 0x10  # uapi/linux/mount.h
_CMSG: Final = struct.Struct("<QiiQ")  # struct cmsghdr, linux/socket.h, with one descriptor
_SOL_SOCKET: Final = 1
_SCM_RIGHTS: Final = 1
MSG_NOSIGNAL: Final = 0x4000  # linux/socket.h
MISSING: Final = (errno.ENOENT, errno.ENOTDIR)

# struct statx, uapi/linux/stat.h
_TYPE: Final = 0o170000  # S_IFMT
_STATX_TYPE: Final = 0x1
_STATX_MODE: Final = 28
_STATX_DEVICE: Final = 128
_STATX_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What the process begins with, by number.

    Args:
        stdio: none where the plan opens a terminal.
        cgroup: the directory that it is born in.
        pidfd: of a container's first process.
        network: a network namespace that was made ahead, and has its loopback device up.
    """

    stdio: tuple[int, ...]
    status: int
    cgroup: int
    pidfd: int = -1
    network: int = -1

    @classmethod
    def in_order(cls, stdio: int, pidfd: bool = False, network: bool = False) -> Descriptors:
        """As they come: stdio, status, cgroup, and then at most one more."""
        status = FIRST + stdio
        last = status + 2
        more = (last if pidfd else -1, last if network else -1)
        return cls(tuple(range(FIRST, status)), status, status + 1, *more)


@dataclass(slots=True)
class Making:
    """A program in the making.

    Args:
        made: directories that are known to be there.
        trees: detached mounts, by the mount they are for.
        null: the path of /dev/null is a device that this program has made.
        masked: where the path stands that has the empty directory on it, once there is one.
        home, program: where the address of HOME's text, or of the program's path, will stand.
        user: uid, gid, the number of groups, and where these stand.
        has_home: HOME is in the environment.
        terminal: the pty's slave.
        variables: the values of the program's variables, in its order.
    """

    flat: Flat
    architecture: str
    fds: Descriptors
    made: set[str] = field(default_factory=set)
    trees: dict[int | str, Result] = field(default_factory=dict)
    null: bool = False
    masked: Data | None = None
    home: Data | None = None
    program: Data | None = None
    user: tuple[int | Result, int | Result, int | Result, int | Data] | None = None
    has_home: bool = False
    terminal: Result | None = None
    variables: list[str] = field(default_factory=list)
    _statx: int | None = None

    @property
    def directory(self) -> int:
        """O_DIRECTORY."""
        return _DIRECTORY[self.architecture]

    @property
    def nofollow(self) -> int:
        """O_NOFOLLOW."""
        return _NOFOLLOW[self.architecture]

    def variable(self, value: str) -> Data:
        """A string that differs from one use to the next."""
        self.variables.append(value)
        return self.flat.variable(value.encode(errors="surrogateescape"))

    def open(self, path: Data, flags: int, **handling: object) -> Result:
        """openat(2), closed on exec; `handling` as in `Flat.call`."""
        return self.flat.call("openat", AT_FDCWD, path, flags | O_CLOEXEC, **handling)  # type: ignore[arg-type]  # passed on as they are

    def close(self, fd: Argument) -> None:
        self.flat.call("close", fd)

    def fail(self) -> None:
        """Give up: the steps know what to say."""
        self.flat.check(self.flat.data(bytes(8)), 0, 1)

    def write(self, path: str, text: str, directory: int = AT_FDCWD) -> None:
        """One write into an existing file."""
        fd = self.flat.call("openat", directory, self.flat.text(path), O_WRONLY | O_CLOEXEC)
        self.write_to(fd, text)

    def write_to(self, fd: Result, text: str) -> None:
        """One write; and the descriptor is closed."""
        self.flat.call("write", fd, self.flat.text(text), len(text.encode()))
        self.close(fd)

    def statx(
        self, fd: Argument, path: str = "", taken: Sequence[int] = (), then: Label | None = None
    ) -> None:
        """Look at a path, or (path "") at a descriptor; for the checks that follow."""
        where = self.flat.text(path)
        self.statx_of(where, fd, 0 if path else AT_EMPTY_PATH, taken, then)

    def statx_of(
        self,
        path: Data,
        fd: Argument = AT_FDCWD,
        flags: int = 0,
        taken: Sequence[int] = (),
        then: Label | None = None,
    ) -> None:
        """The same, of a path that stands there already."""
        if self._statx is None:
            self._statx = self.flat.scratch(_STATX_BYTES)
        args = (fd, path, flags, _STATX_TYPE, self._statx)
        self.flat.call("statx", *args, taken=taken, then=then)

    def check_type(self, kind: int, otherwise: Label | None = None) -> None:
        """What was looked at last is of this type (S_IFDIR)."""
        assert self._statx is not None
        self.flat.check(self._statx + _STATX_MODE, _TYPE, kind, otherwise)

    def check_major(self, major: int, mask: int, otherwise: Label | None = None) -> None:
        """The masked major number of what was looked at last is this one."""
        assert self._statx is not None
        self.flat.check(self._statx + _STATX_DEVICE, mask, major, otherwise)

    def check_device(self, major: int, minor: int) -> None:
        """What was looked at last is this character device."""
        assert self._statx is not None
        self.check_type(stat.S_IFCHR)
        self.check_major(major, 0xFFFFFFFF)
        self.flat.check(self._statx + _STATX_DEVICE + 4, 0xFFFFFFFF, minor)

    def set_mount(
        self, fd: Argument, path: Data, recursive: bool, change: tuple[int, int], mode: int = 0
    ) -> None:
        """mount_setattr(2): attributes to set and to clear, propagation to give."""
        flat = self.flat
        attr = flat.data(struct.pack("<QQQQ", *change, mode, 0))  # struct mount_attr
        empty = path == flat.text("")
        flags = (AT_RECURSIVE if recursive else 0) | (AT_EMPTY_PATH if empty else 0)
        flat.call("mount_setattr", fd, path, flags, attr, 32)

    def send_descriptor(self, fd: Result, words: bytes) -> None:
        """Give PID 1 a duplicate of a descriptor, with these words."""
        flat = self.flat
        rights = flat.data(_CMSG.pack(20, _SOL_SOCKET, _SCM_RIGHTS, 0))
        if fd.place is None:
            flat.keep(fd, rights.at(16))
        else:
            flat.copy(rights.at(16), fd.place)
        vector = flat.data(struct.pack("<QQ", 0, len(words)))  # struct iovec
        flat.point(vector, flat.data(words))
        message = flat.data(struct.pack("<QQQQQQQ", 0, 0, 0, 1, 0, _CMSG.size, 0))  # struct msghdr
        flat.point(message.at(16), vector)
        flat.point(message.at(32), rights)
        flat.call("sendmsg", self.fds.status, message, MSG_NOSIGNAL)

    def attach(self, tree: Argument, target: str) -> None:
        """Put a detached mount at `target`, whose last part may be a link."""
        flat = self.flat
        flags = MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_SYMLINKS
        flat.call("move_mount", tree, flat.text(""), AT_FDCWD, flat.text(target), flags)
        self.close(tree)

    def directories(self, path: str) -> None:
        """mkdir -p; for each one that may be missing."""
        if path != posixpath.normpath(path) or not path.startswith("/") or path[1:2] == "/":
            raise NotFlat(f"{path} is not in its plainest form")
        parts = path.split("/")[1:] if path != "/" else []
        for count in range(1, len(parts) + 1):
            prefix = "/" + "/".join(parts[:count])
            if prefix not in self.made:
                args = (AT_FDCWD, self.flat.text(prefix), 0o755)
                self.flat.call("mkdirat", *args, taken=(errno.EEXIST,))
                self.made.add(prefix)

    def covered(self, path: str) -> None:
        """Something is mounted on `path`: nothing is known of what is below."""
        self.made = {known for known in self.made if not known.startswith(f"{path}/")}
