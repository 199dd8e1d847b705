"""This host: its processor, its size, and its limit on open files."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Linux, Documentation/admin-guide/cgroup-v2.rst: the limit of the container that we run in."""

_FILES_WANTED = 65536
_MACOS_OPEN_MAX = 10240
"""macOS, sys/syslimits.h OPEN_MAX: setrlimit(2) refuses more even below an infinite hard limit."""


def processor() -> str:
    """The architecture of this computer as it calls it: x86_64, amd64, aarch64, arm64, …

    A Python for Intel is told that it runs on an Intel processor, also by Rosetta on Apple silicon;
    a machine that believed it would be emulated from end to end.
    """
    name = platform.machine().lower()
    if sys.platform == "darwin" and name == "x86_64" and _sysctl(b"sysctl.proc_translated"):
        return "arm64"
    return name


def total_memory() -> int:
    """Bytes of memory that this process may hope for: the host's, or its container's limit."""
    if sys.platform == "win32":
        return _windows_memory()
    if sys.platform == "darwin":
        return _macos_memory()
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(physical, _cgroup_limit(_CGROUP_LIMIT) or physical)


def cpu_count() -> int:
    """Processors that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def raise_file_limit(wanted: int = _FILES_WANTED) -> int:
    """Raise the soft limit on open files towards `wanted`; children inherit it. Returns the limit.

    macOS starts programs with 256, QEMU needs a descriptor per layer. Windows has no such limit.
    """
    if sys.platform == "win32":
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for target in (wanted, _MACOS_OPEN_MAX):
        if hard != resource.RLIM_INFINITY:
            target = min(target, hard)
        if soft == resource.RLIM_INFINITY or soft >= target:
            return soft
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        except (ValueError, OSError):
            continue  # the system allows less: try the smaller figure
        return target
    return soft


def _cgroup_limit(file: Path) -> int | None:
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None  # not in a cgroup of its own
    return int(text) if text.isdigit() else None


def _macos_memory() -> int:
    size = _sysctl(b"hw.memsize")
    if size is None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), "sysctl hw.memsize")
    return size


def _sysctl(name: bytes) -> int | None:
    """macOS, sysctl(3): an integer of 4 or 8 bytes; None when this system has none of that name."""
    value = ctypes.c_uint64(
        0
    )  # both kinds of Mac are little-endian: four bytes fill the lower half
    length = ctypes.c_size_t(ctypes.sizeof(value))
    libc = ctypes.CDLL(None)
    if libc.sysctlbyname(name, ctypes.byref(value), ctypes.byref(length), None, 0) != 0:
        return None
    return value.value


class _MemoryStatus(ctypes.Structure):
    """Windows, sysinfoapi.h MEMORYSTATUSEX."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total_physical", ctypes.c_uint64),
        ("available_physical", ctypes.c_uint64),
        ("total_page_file", ctypes.c_uint64),
        ("available_page_file", ctypes.c_uint64),
        ("total_virtual", ctypes.c_uint64),
        ("available_virtual", ctypes.c_uint64),
        ("available_extended_virtual", ctypes.c_uint64),
    )


def _windows_memory() -> int:
    if sys.platform != "win32":
        raise OSError("only on Windows")
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise ctypes.WinError()
    return int(status.total_physical)
