"""Children that must not outlive us, and children that must not open a window. Windows' affairs."""

from __future__ import annotations

import ctypes
import subprocess
import sys

_EXTENDED_LIMIT_INFORMATION = 9
_LIMIT_KILL_ON_JOB_CLOSE = 0x2000
_PROCESS_TERMINATE = 0x0001
_PROCESS_SET_QUOTA = 0x0100
"""winnt.h"""


class _ExtendedLimits(ctypes.Structure):
    """winnt.h JOBOBJECT_EXTENDED_LIMIT_INFORMATION; of its fields only the flags are used."""

    _fields_ = (
        ("process_user_time", ctypes.c_int64),
        ("job_user_time", ctypes.c_int64),
        ("flags", ctypes.c_uint32),
        ("minimum_working_set", ctypes.c_size_t),
        ("maximum_working_set", ctypes.c_size_t),
        ("active_processes", ctypes.c_uint32),
        ("affinity", ctypes.c_size_t),
        ("priority", ctypes.c_uint32),
        ("scheduling", ctypes.c_uint32),
        ("io_counters", ctypes.c_uint64 * 6),
        ("process_memory", ctypes.c_size_t),
        ("job_memory", ctypes.c_size_t),
        ("peak_process_memory", ctypes.c_size_t),
        ("peak_job_memory", ctypes.c_size_t),
    )


def no_window() -> int:
    """`creationflags` for a program that shall not open a console window, though we have none."""
    if sys.platform == "win32":
        return subprocess.CREATE_NO_WINDOW
    return 0


def die_with_us(pid: int) -> None:
    """Let the system kill our child `pid` when we end, however that happens. Windows only; does
    nothing elsewhere.

    Raises:
        OSError: the child cannot be put into a job.
    """
    if sys.platform != "win32":
        return
    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel32.CreateJobObjectW.restype = ctypes.c_void_p
    kernel32.OpenProcess.restype = ctypes.c_void_p
    job = ctypes.c_void_p(kernel32.CreateJobObjectW(None, None))  # closed by our end, not before
    limits = _ExtendedLimits(flags=_LIMIT_KILL_ON_JOB_CLOSE)
    process = ctypes.c_void_p(
        kernel32.OpenProcess(_PROCESS_SET_QUOTA | _PROCESS_TERMINATE, False, pid)
    )
    done = (
        job.value
        and process.value
        and kernel32.SetInformationJobObject(
            job, _EXTENDED_LIMIT_INFORMATION, ctypes.byref(limits), ctypes.sizeof(limits)
        )
        and kernel32.AssignProcessToJobObject(job, process)
    )
    error = ctypes.get_last_error()
    kernel32.CloseHandle(process)
    if not done:
        raise ctypes.WinError(error)
