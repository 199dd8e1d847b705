"""The one seam to the kernel: every privileged call of the container core goes through `Kernel`.

Rules: methods are thin (one system call, typed, no policy; `core.libc` says how one is made); a
failure is an OSError; nothing is imported later (the root may be a container's by then). Tests put
a recording fake in `Kernel`'s place. Numbers are from the kernel's uapi headers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from wherry_guest.core.copytree import copy_contents
from wherry_guest.core.holder import Holder, hold, let_go
from wherry_guest.core.libc import call_number, check, encoded, libc, oserror, raw_call
from wherry_guest.core.programs import ProgramEnd, run_program
from wherry_guest.core.structures import CapData, CapHeader, CloneArgs, MountAttr, OpenHow

# uapi/linux/mount.h
MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_SYNCHRONOUS: Final = 0x10
MS_REMOUNT: Final = 0x20
MS_DIRSYNC: Final = 0x80
MS_NOSYMFOLLOW: Final = 0x100
MS_NOATIME: Final = 0x400
MS_NODIRATIME: Final = 0x800
MS_BIND: Final = 0x1000
MS_MOVE: Final = 0x2000
MS_REC: Final = 0x4000
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = 0o2000000
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR__ATIME: Final = 0x70
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_IDMAP: Final = 0x100000
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6

# uapi/linux/fcntl.h
AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000

O_PATH: Final = 0o10000000  # asm-generic/fcntl.h

# uapi/linux/openat2.h
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_IN_ROOT: Final = 0x10

# uapi/linux/sched.h
CLONE_NEWTIME: Final = 0x00000080
CLONE_PARENT: Final = 0x00008000
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
CLONE_INTO_CGROUP: Final = 0x200000000

# uapi/linux/prctl.h
PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_CAPBSET_DROP: Final = 24
PR_SET_SECUREBITS: Final = 28
SECBIT_NO_SETUID_FIXUP: Final = 1 << 2  # uapi/linux/securebits.h
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

# uapi/linux/close_range.h
CLOSE_RANGE_CLOEXEC: Final = 4

# uapi/linux/reboot.h
RB_AUTOBOOT: Final = 0x01234567
RB_POWER_OFF: Final = 0x4321FEDC

# uapi/linux/capability.h
CAPABILITY_VERSION_3: Final = 0x20080522

_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_PIDFD_OPEN: Final = 434
_CLONE3: Final = 435
_CLOSE_RANGE: Final = 436
_OPENAT2: Final = 437
_MOUNT_SETATTR: Final = 442

_CLOEXEC: Final = 1  # FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC, uapi/linux/mount.h
KEYCTL_JOIN_SESSION_KEYRING: Final = 1  # uapi/linux/keyctl.h
IOPRIO_WHO_PROCESS: Final = 1  # uapi/linux/ioprio.h
_OPENAT2_TRIES: Final = 100
_F_DUPFD_CLOEXEC: Final = 1030  # uapi/linux/fcntl.h
_F_ADD_SEALS: Final = 1033  # uapi/linux/fcntl.h
_ALL_SEALS: Final = 0xF  # F_SEAL_SEAL, _SHRINK, _GROW, _WRITE
_NLMSG_ERROR: Final = 2  # uapi/linux/netlink.h
_NLMSG_HEADER: Final = 16
_SIGCHLD: Final = 17  # asm-generic/signal.h
LOCK_EX: Final = 2  # uapi/asm-generic/fcntl.h
_RLIM_INFINITY: Final = 2**64 - 1  # asm-generic/resource.h: ~0UL

# Names of the standard library that exist on POSIX or Linux only; mypy checks all platforms.
_os: Final[Any] = os
_socket: Final[Any] = socket


@dataclass(frozen=True, slots=True)
class FileStatus:
    """What steps need of struct stat: `mode` with the type; the numbers of a device node."""

    mode: int
    major: int = 0
    minor: int = 0

    def is_character_device(self, major: int, minor: int) -> bool:
        return stat.S_ISCHR(self.mode) and (self.major, self.minor) == (major, minor)


def _file_status(result: Any) -> FileStatus:
    device = result.st_rdev
    return FileStatus(result.st_mode, _os.major(device), _os.minor(device))


def netlink_error(answer: bytes) -> int:
    """The errno in an acknowledgement (struct nlmsghdr, then struct nlmsgerr); 0: done."""
    kind = struct.unpack_from("=IH", answer)[1]
    if kind != _NLMSG_ERROR:
        raise OSError(errno.EPROTO, f"netlink: message type {kind} instead of an acknowledgement")
    return -int(struct.unpack_from("=i", answer, _NLMSG_HEADER)[0])


class Kernel:
    """The real kernel. Paths are str; sizes bytes; every method raises OSError."""

    # Mounts.

    def mount(
        self, source: str | None, target: str, fstype: str | None, flags: int, data: str | None
    ) -> None:
        names = (encoded(source), encoded(target), encoded(fstype))
        check(libc().mount(*names, ctypes.c_ulong(flags), encoded(data)), "mount", target)

    def umount(self, target: str, flags: int = 0) -> None:
        check(libc().umount2(encoded(target), flags), "umount2", target)

    def pivot_root(self, new_root: str, put_old: str) -> None:
        raw_call(call_number("pivot_root"), "pivot_root", encoded(new_root), encoded(put_old))

    def open_tree(self, path: str, recursive: bool, directory: int = AT_FDCWD) -> int:
        """A detached copy of the mount at `path` ("" with `directory`: of that descriptor)."""
        flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
        flags |= AT_RECURSIVE if recursive else 0
        flags |= 0 if path else AT_EMPTY_PATH
        return raw_call(_OPEN_TREE, "open_tree", directory, encoded(path), flags, path=path)

    def move_mount(self, tree: int, target: str, directory: int = AT_FDCWD) -> None:
        """Attach the detached mount `tree` at `target` ("" with `directory`: on that one)."""
        flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if target else MOVE_MOUNT_T_EMPTY_PATH)
        args = (tree, b"", directory, encoded(target), flags)
        raw_call(_MOVE_MOUNT, "move_mount", *args, path=target)

    def mount_setattr(
        self, directory: int, path: str, recursive: bool, attr_set: int, attr_clear: int
    ) -> None:
        """Change MOUNT_ATTR_* flags of the mount at `path`, or (path "") of the descriptor."""
        attr = MountAttr(attr_set, attr_clear, 0, 0)
        flags = (AT_RECURSIVE if recursive else 0) | (0 if path else AT_EMPTY_PATH)
        args = (directory, encoded(path), flags, ctypes.byref(attr), ctypes.sizeof(attr))
        raw_call(_MOUNT_SETATTR, "mount_setattr", *args, path=path)

    def set_propagation(self, directory: int, path: str, recursive: bool, mode: int) -> None:
        """Change the propagation (MS_PRIVATE, MS_SLAVE, …) of a mount, given as above."""
        attr = MountAttr(0, 0, mode, 0)
        flags = (AT_RECURSIVE if recursive else 0) | (0 if path else AT_EMPTY_PATH)
        args = (directory, encoded(path), flags, ctypes.byref(attr), ctypes.sizeof(attr))
        raw_call(_MOUNT_SETATTR, "mount_setattr", *args, path=path)

    def set_id_map(self, tree: int, recursive: bool, user_namespace: int) -> None:
        """Map owners in the detached mount `tree` as the user namespace does; only once."""
        attr = MountAttr(MOUNT_ATTR_IDMAP, 0, 0, user_namespace)
        flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
        args = (tree, b"", flags, ctypes.byref(attr), ctypes.sizeof(attr))
        raw_call(_MOUNT_SETATTR, "mount_setattr", *args)

    def fsopen(self, fstype: str) -> int:
        return raw_call(_FSOPEN, "fsopen", encoded(fstype), _CLOEXEC, path=fstype)

    def fsconfig(self, fd: int, command: int, key: str | None, value: str | None) -> None:
        args = (fd, command, encoded(key), encoded(value), 0)
        raw_call(_FSCONFIG, "fsconfig", *args, path=key)

    def fsmount(self, fd: int, attributes: int) -> int:
        """A detached mount of the file system that `fsopen` and `fsconfig` have described."""
        return raw_call(_FSMOUNT, "fsmount", fd, _CLOEXEC, attributes)

    # Namespaces and processes.

    def unshare(self, flags: int) -> None:
        check(libc().unshare(flags), "unshare")

    def setns(self, fd: int, flags: int) -> None:
        check(libc().setns(fd, flags), "setns")

    def pidfd_open(self, pid: int) -> int:
        return raw_call(_PIDFD_OPEN, "pidfd_open", pid, 0)

    def clone(self, flags: int, cgroup: int | None) -> int:
        """fork() with namespaces, born in a cgroup; 0 in the child.

        It passes by CPython's fork hooks: for a process with one thread only. Being born in the
        cgroup saves the migration, which waits for an RCU grace period (tens of milliseconds).
        """
        # with CLONE_PARENT the signal is the parent's own; the kernel refuses another one
        args = CloneArgs(flags=flags, exit_signal=0 if flags & CLONE_PARENT else _SIGCHLD)
        if cgroup is not None:
            args.flags |= CLONE_INTO_CGROUP
            args.cgroup = cgroup
        return raw_call(_CLONE3, "clone3", ctypes.byref(args), ctypes.sizeof(args))

    def hold_user_namespace(self) -> Holder:
        """A child in a new user namespace, without mappings, that ends with `let_go`."""
        return hold(self, CLONE_NEWUSER)

    def let_go(self, holder: Holder) -> None:
        let_go(holder)

    def run_program(
        self,
        path: str,
        args: Sequence[str],
        env: Sequence[str],
        text: bytes,
        timeout: float | None,
    ) -> ProgramEnd:
        """Run a program to its end; see `core.programs`."""
        return run_program(self, path, args, env, text, timeout)

    def setsid(self) -> None:
        _os.setsid()

    def sethostname(self, name: str) -> None:
        data = name.encode()
        check(libc().sethostname(data, ctypes.c_size_t(len(data))), "sethostname")

    def setdomainname(self, name: str) -> None:
        data = name.encode()
        check(libc().setdomainname(data, ctypes.c_size_t(len(data))), "setdomainname")

    def prctl(self, option: int, *args: int) -> None:
        longs = [ctypes.c_ulong(arg) for arg in (*args, *[0] * (4 - len(args)))]
        check(libc().prctl(option, *longs), "prctl")

    def capset(self, effective: int, permitted: int, inheritable: int) -> None:
        """Set the calling process's sets; each is a 64-bit mask."""
        header = CapHeader(CAPABILITY_VERSION_3, 0)
        halves = [
            CapData(*(mask >> shift & 0xFFFFFFFF for mask in (effective, permitted, inheritable)))
            for shift in (0, 32)
        ]
        data = (CapData * 2)(*halves)
        check(libc().capset(ctypes.byref(header), ctypes.byref(data)), "capset")

    def setgroups(self, groups: Sequence[int]) -> None:
        _os.setgroups(list(groups))

    def setgid(self, gid: int) -> None:
        _os.setresgid(gid, gid, gid)

    def setuid(self, uid: int) -> None:
        _os.setresuid(uid, uid, uid)

    def set_file_ids(self, uid: int, gid: int) -> None:
        """The ids that files are made and opened with; setfsuid(2) cannot fail for root."""
        libc().setfsgid(gid)
        libc().setfsuid(uid)

    def setrlimit(self, resource: int, soft: int, hard: int) -> None:
        limits = (ctypes.c_ulong * 2)(soft & _RLIM_INFINITY, hard & _RLIM_INFINITY)
        check(libc().setrlimit(resource, limits), "setrlimit")

    def raise_hard_limit(self, resource: int, hard: int) -> None:
        """Let the hard limit be at least `hard`, and the soft one as it is."""
        limits = (ctypes.c_ulong * 2)()
        check(libc().getrlimit(resource, limits), "getrlimit")
        if limits[1] < hard & _RLIM_INFINITY:
            self.setrlimit(resource, limits[0], hard)

    def sched_setattr(self, attributes: bytes) -> None:
        """Set the calling process's scheduling from a struct sched_attr."""
        raw_call(call_number("sched_setattr"), "sched_setattr", 0, attributes, 0)

    def ioprio_set(self, priority: int) -> None:
        args = (IOPRIO_WHO_PROCESS, 0, priority)
        raw_call(call_number("ioprio_set"), "ioprio_set", *args)

    def personality(self, domain: int) -> None:
        check(libc().personality(ctypes.c_ulong(domain)), "personality")

    def new_session_keyring(self) -> None:
        """A new anonymous session keyring instead of the inherited one."""
        args = (KEYCTL_JOIN_SESSION_KEYRING, ctypes.c_void_p(None))
        raw_call(call_number("keyctl"), "keyctl", *args)

    def umask(self, mask: int) -> None:
        os.umask(mask)

    def bpf(self, command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
        """bpf(2) with a `union bpf_attr` given as bytes."""
        args = (command, ctypes.byref(attributes), ctypes.sizeof(attributes))
        return raw_call(call_number("bpf"), "bpf", *args)

    def seccomp(self, operation: int, flags: int, program: Any) -> None:
        """seccomp(2); `program` is a ctypes pointer to struct sock_fprog."""
        raw_call(call_number("seccomp"), "seccomp", operation, flags, program)

    def execve(self, path: str, args: Sequence[str], env: Sequence[str]) -> NoReturn:
        """Replace the process. `env` is "NAME=value", kept in order (os.execve takes a dict)."""
        argv = (ctypes.c_char_p * (len(args) + 1))(*map(os.fsencode, args), None)
        envp = (ctypes.c_char_p * (len(env) + 1))(*map(os.fsencode, env), None)
        libc().execve(encoded(path), argv, envp)
        oserror("execve", path)

    # Files and descriptors.

    def chdir(self, path: str) -> None:
        os.chdir(path)

    def fchdir(self, fd: int) -> None:
        _os.fchdir(fd)

    def getcwd(self) -> str:
        """The working directory; OSError when it lies outside of the root."""
        return os.getcwd()  # noqa: PTH109 - a seam to the kernel, not path arithmetic

    def chroot(self, path: str) -> None:
        _os.chroot(path)

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        os.mkdir(path, mode)  # noqa: PTH102 - as getcwd

    def rmdir(self, path: str) -> None:
        os.rmdir(path)  # noqa: PTH106 - as getcwd

    def mknod(self, path: str, mode: int, major: int, minor: int) -> None:
        _os.mknod(path, mode, _os.makedev(major, minor))

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, path)  # noqa: PTH211 - as getcwd

    def unlink(self, path: str) -> None:
        os.unlink(path)  # noqa: PTH108 - as getcwd

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)  # noqa: PTH101 - as getcwd

    def chown(self, path: str, uid: int, gid: int) -> None:
        _os.chown(path, uid, gid)

    def fchown(self, fd: int, uid: int, gid: int) -> None:
        _os.fchown(fd, uid, gid)

    def stat(self, path: str | int) -> FileStatus:
        return _file_status(os.stat(path))  # noqa: PTH116 - as getcwd

    def lstat(self, path: str) -> FileStatus:
        return _file_status(os.lstat(path))

    def readlink(self, path: str) -> str:
        return os.readlink(path)  # noqa: PTH115 - as getcwd

    def realpath(self, path: str) -> str:
        return os.path.realpath(path)

    def executable(self, path: str) -> bool:
        """Whether the effective user may execute `path` (eaccess(3))."""
        return os.access(path, os.X_OK, effective_ids=True)

    def open(self, path: str, flags: int, mode: int = 0) -> int:
        return os.open(path, flags | _os.O_CLOEXEC, mode)

    def openat2(
        self, directory: int, path: str | bytes, flags: int, resolve: int, mode: int = 0
    ) -> int:
        """openat2(2): `resolve` (RESOLVE_*) holds for every part of `path`."""
        how = OpenHow(flags | _os.O_CLOEXEC, mode, resolve)
        args = (directory, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
        for _ in range(_OPENAT2_TRIES):
            try:
                return raw_call(_OPENAT2, "openat2", *args, path=os.fsdecode(path))
            except BlockingIOError:  # EAGAIN: something was renamed on the way; openat2(2)
                continue
        return raw_call(_OPENAT2, "openat2", *args, path=os.fsdecode(path))

    def sealed_file(self, name: str, data: bytes) -> int:
        """A file in memory that nobody can change any more; closed on exec."""
        fd: int = _os.memfd_create(name, _os.MFD_CLOEXEC | _os.MFD_ALLOW_SEALING)
        os.write(fd, data)
        check(libc().fcntl(fd, _F_ADD_SEALS, ctypes.c_int(_ALL_SEALS)), "fcntl")
        return fd

    def copy_contents(self, source: int, target: int, lock: int = -1) -> None:
        """Fill the open directory `target`, if it is empty; see `core.copytree`.

        Args:
            lock: a descriptor that all who might do so at the same time lock, flock(2).
        """
        if lock >= 0 and not os.listdir(target):
            check(libc().flock(lock, LOCK_EX), "flock")
        copy_contents(source, target)

    def close(self, fd: int) -> None:
        os.close(fd)

    def dup2(self, fd: int, target: int) -> None:
        os.dup2(fd, target, inheritable=True)

    def duplicate(self, fd: int, lowest: int) -> int:
        """A duplicate of `fd`, closed on exec, whose number is at least `lowest`."""
        number = libc().fcntl(fd, _F_DUPFD_CLOEXEC, ctypes.c_int(lowest))
        return check(number, "fcntl")

    def read(self, fd: int, size: int) -> bytes:
        return os.read(fd, size)

    def write(self, path: str, text: str) -> None:
        """Write `text` into an existing file (of procfs, sysfs or cgroupfs) in one call."""
        fd = os.open(path, os.O_WRONLY | _os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def close_range(self, first: int, last: int, flags: int = 0) -> None:
        raw_call(_CLOSE_RANGE, "close_range", first, last, flags)

    def ioctl(self, fd: int, request: int, argument: int | bytes = 0) -> int:
        """The call's result; not the changed bytes."""
        pointer: Any = argument
        if isinstance(argument, bytes):
            pointer = ctypes.create_string_buffer(argument, len(argument))
        else:
            pointer = ctypes.c_ulong(argument)
        return check(libc().ioctl(fd, ctypes.c_ulong(request), pointer), "ioctl")

    def netlink(self, requests: Sequence[bytes]) -> None:
        """Send rtnetlink requests (built with `core.netlink`), each until its acknowledgement."""
        sock = socket.socket(_socket.AF_NETLINK, socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)
        try:
            for request in requests:
                sock.send(request)
                number = netlink_error(sock.recv(65536))
                if number:
                    raise OSError(number, f"netlink: {os.strerror(number)}")
        finally:
            sock.close()

    # The machine.

    def finit_module(self, fd: int, parameters: str = "") -> None:
        raw_call(call_number("finit_module"), "finit_module", fd, encoded(parameters), 0)

    def swapon(self, path: str, flags: int) -> None:
        check(libc().swapon(encoded(path), flags), "swapon", path)

    def reboot(self, command: int) -> None:
        check(libc().reboot(ctypes.c_int(command & 0xFFFFFFFF)), "reboot")
