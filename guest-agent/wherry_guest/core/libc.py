"""How a system call is made: through the C library, or raw by its number; and how it fails.

Rules: nothing touches libc before the first call, so that the module imports on any OS; a failure
is an OSError. For `core.syscalls`, the seam to the kernel, whose methods these are made of.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Any, Final, NoReturn

_os: Final[Any] = os  # uname exists on POSIX only; mypy checks all platforms

_MACHINE: Final[str] = _os.uname().machine if hasattr(os, "uname") else ""
"""Asked once: personality(2) changes what uname(2) says."""

# asm/unistd_64.h (x86-64) and asm-generic/unistd.h (arm64); 424 and above are the same everywhere.
_NUMBERS: Final[Mapping[str, Mapping[str, int]]] = {
    "x86_64": {
        "pivot_root": 155, "keyctl": 250, "ioprio_set": 251, "finit_module": 313,
        "sched_setattr": 314, "seccomp": 317, "bpf": 321,
    },
    "aarch64": {
        "ioprio_set": 30, "pivot_root": 41, "keyctl": 219, "finit_module": 273,
        "sched_setattr": 274, "seccomp": 277, "bpf": 280,
    },
}  # fmt: skip

_libc_cache: Any = None


def libc() -> Any:
    """The C library, opened when it is first needed."""
    global _libc_cache
    if _libc_cache is None:
        _libc_cache = ctypes.CDLL(None, use_errno=True)
    return _libc_cache


def oserror(name: str, path: str | None = None) -> NoReturn:
    """Raise the OSError for the system call `name` that just failed, on `path` if there is one."""
    number = ctypes.get_errno()
    raise OSError(number, f"{name}: {os.strerror(number)}", path)


def check(result: int, name: str, path: str | None = None) -> int:
    """`result`, unless it says that `name` has failed: OSError."""
    if result == -1:
        oserror(name, path)
    return result


def call_number(name: str) -> int:
    """Of a system call that has another number on each architecture."""
    return _NUMBERS[_MACHINE][name]


def raw_call(number: int, name: str, *args: Any, path: str | None = None) -> int:
    """A raw system call; integers go as longs (variadic C would take them for ints)."""
    converted = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return check(libc().syscall(ctypes.c_long(number), *converted), name, path)


def encoded(text: str | None) -> bytes | None:
    """As C takes it: a string of bytes, or a null pointer."""
    return None if text is None else os.fsencode(text)
