"""Structures of the kernel's ABI, as ctypes lays them out. Used by `core.syscalls` only."""

from __future__ import annotations

import ctypes


class CloneArgs(ctypes.Structure):
    """struct clone_args, uapi/linux/sched.h (CLONE_ARGS_SIZE_VER2)."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size",
            "tls", "set_tid", "set_tid_size", "cgroup",
        )
    )  # fmt: skip


class MountAttr(ctypes.Structure):
    """struct mount_attr, uapi/linux/mount.h."""

    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")
    )


class OpenHow(ctypes.Structure):
    """struct open_how, uapi/linux/openat2.h."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("flags", "mode", "resolve"))


class CapHeader(ctypes.Structure):
    """struct __user_cap_header_struct, uapi/linux/capability.h."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class CapData(ctypes.Structure):
    """struct __user_cap_data_struct, uapi/linux/capability.h; two of them make 64 bits."""

    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable"))
