"""Processes that outlive us, and how to know one again.

A pid alone names nobody: it is used again. A process is its pid and the time it was started, read
from the kernel. A zombie counts as dead.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wherry.osutil.longpaths import working_directory

_POLL_SECONDS = 0.02

_PROC_PIDTBSDINFO = 3
_BSDINFO_SIZE = 136
_BSDINFO_STATUS = struct.Struct("=4xI")
_BSDINFO_START = struct.Struct("=120xQQ")
_SSTOP, _SZOMB = 4, 5
"""macOS, bsd/sys/proc_info.h struct proc_bsdinfo (pbi_status, pbi_start_tvsec/usec), sys/proc.h."""

_PROCESS_TERMINATE = 0x0001
_PROCESS_QUERY_LIMITED_INFORMATION = 0x1000
_STILL_ACTIVE = 259
"""Windows, winnt.h and minwinbase.h."""

_children: dict[int, subprocess.Popen[bytes]] = {}
"""Detached processes that are still our children: kept so that `exit_status` can reap them."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process, unmistakably: `start_time` is opaque text that differs for each use of the pid."""

    pid: int
    start_time: str


def spawn_detached(
    argv: Sequence[str | os.PathLike[str]],
    *,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int | None = None,
    pass_fds: Sequence[int] = (),
) -> int:
    """Start a program that lives on when we end, are interrupted, or lose our terminal.

    It gets its own session (POSIX), or no console, a process group of its own and, where allowed, a
    place outside our job object (Windows). Output is appended to `log`; `stdin` is a descriptor to
    inherit as standard input, by default there is none, and `stdout` one as standard output. The
    descriptors `pass_fds` keep their numbers in it (POSIX).

    Returns:
        Its pid. While we live, `exit_status(pid)` tells how it ended.

    Raises:
        OSError: it could not be started.
    """
    for child in _children.values():
        child.poll()  # one that has ended is no zombie for as long as we live
    with log.open("ab") as output:
        process = _popen(
            [os.fspath(arg) for arg in argv], (stdin, stdout, output.fileno()), cwd, env, pass_fds
        )
    _children[process.pid] = process
    return process.pid


@atexit.register
def _let_go() -> None:
    """Children live on, as they are to: Python shall not warn that nobody has waited for them."""
    for child in _children.values():
        if child.poll() is None:
            child.returncode = 0


def exit_status(pid: int, *, within: float = 0.0) -> int | None:
    """How a process that `spawn_detached` of this process started has ended; None while it runs.

    Negative: the signal that ended it. Waits up to `within` seconds for one that is just ending.

    Raises:
        KeyError: not started here.
    """
    try:
        return _children[pid].wait(within)
    except subprocess.TimeoutExpired:
        return None


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of the process that has this pid now; None when there is none."""
    start_time = _start_time(pid)
    return None if start_time is None else ProcessIdentity(pid, start_time)


def is_alive(identity: ProcessIdentity) -> bool:
    return identify(identity.pid) == identity


def wait_gone(identity: ProcessIdentity, timeout: float) -> bool:
    """Wait until the process has ended. False when it still runs after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while is_alive(identity):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    child = _children.get(identity.pid)
    # Reaped, else it stays a zombie as long as we live; while threads of it still end it cannot be.
    while child is not None and child.poll() is None and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return True


def terminate(identity: ProcessIdentity, *, grace: float = 5.0) -> None:
    """Ask the process to end; after `grace` seconds kill it. Nothing happens when it is not alive.

    Windows cannot ask: there it is killed. Blocks the thread for up to `grace` + 5 seconds.

    Raises:
        TimeoutError: it is alive 5 s after it was killed (stuck in the kernel).
        PermissionError: it is another user's.
    """
    if sys.platform != "win32":
        _signal(identity, signal.SIGTERM)
        if wait_gone(identity, grace):
            return
    kill(identity)
    if not wait_gone(identity, 5.0):
        raise TimeoutError(f"process {identity.pid} is still there 5 s after it was killed")


def kill(identity: ProcessIdentity) -> None:
    """End the process at once. Nothing happens when it is not alive."""
    if sys.platform == "win32":
        _windows_kill(identity)
    else:
        _signal(identity, signal.SIGKILL)


def _popen(
    argv: list[str],
    streams: tuple[int, int | None, int],
    cwd: Path | None,
    env: Mapping[str, str] | None,
    pass_fds: Sequence[int],
) -> subprocess.Popen[bytes]:
    stdin, stdout, stderr = streams
    stdout = stderr if stdout is None else stdout
    cwd = None if cwd is None else working_directory(cwd)
    if sys.platform == "win32":
        flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
        try:
            return subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                env=env,
                creationflags=flags | subprocess.CREATE_BREAKAWAY_FROM_JOB,
            )
        except PermissionError:  # our job forbids breaking away: then we live and die with it
            return subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                env=env,
                creationflags=flags,
            )
    return subprocess.Popen(
        argv,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        env=env,
        pass_fds=pass_fds,
        start_new_session=True,
    )


def _signal(identity: ProcessIdentity, number: int) -> None:
    if is_alive(identity):
        with contextlib.suppress(ProcessLookupError):
            os.kill(identity.pid, number)


def _start_time(pid: int) -> str | None:
    if pid <= 0:
        return None
    if sys.platform == "win32":
        return _windows_start_time(pid)
    if sys.platform == "darwin":
        return parse_bsdinfo(_macos_bsdinfo(pid))
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    ticks = parse_proc_stat(text)
    if ticks is None:
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}:{ticks}"


def parse_proc_stat(text: bytes) -> int | None:
    """Start time in clock ticks since boot, of proc_pid_stat(5); None for a zombie."""
    fields = stat_fields(text)
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def stat_fields(text: bytes) -> list[bytes]:
    """The fields of proc_pid_stat(5) from the state on: the name before it, in parentheses, may
    hold anything."""
    return text[text.rindex(b")") + 2 :].split()


def parse_bsdinfo(data: bytes) -> str | None:
    """Start time from struct proc_bsdinfo; None when it is short (no such process) or a zombie."""
    if len(data) < _BSDINFO_SIZE or _BSDINFO_STATUS.unpack_from(data)[0] == _SZOMB:
        return None
    seconds, microseconds = _BSDINFO_START.unpack_from(data)
    return f"{seconds}.{microseconds:06}"


def is_stopped_on_macos(pid: int) -> bool | None:
    """Whether a signal has stopped it; None: there is no such process."""
    data = _macos_bsdinfo(pid)
    if len(data) < _BSDINFO_SIZE:
        return None
    return bool(_BSDINFO_STATUS.unpack_from(data)[0] == _SSTOP)


def _macos_bsdinfo(pid: int) -> bytes:
    libproc = ctypes.CDLL("/usr/lib/libproc.dylib", use_errno=True)
    buffer = ctypes.create_string_buffer(_BSDINFO_SIZE)
    size = libproc.proc_pidinfo(pid, _PROC_PIDTBSDINFO, ctypes.c_uint64(0), buffer, _BSDINFO_SIZE)
    return buffer.raw[: max(size, 0)]


def _windows_start_time(pid: int) -> str | None:
    times = _windows_times(pid)
    return None if times is None else str(times[0])


def windows_cpu_seconds(pid: int) -> float | None:
    """What it has used of the processors; None: there is no such process."""
    times = _windows_times(pid)
    return None if times is None else (times[2] + times[3]) / 1e7


def _windows_times(pid: int) -> tuple[int, int, int, int] | None:
    """FILETIMEs (100 ns): creation, exit, kernel, user. None: it has ended."""
    if sys.platform != "win32":
        return None
    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel32.OpenProcess.restype = ctypes.c_void_p
    handle = kernel32.OpenProcess(_PROCESS_QUERY_LIMITED_INFORMATION, False, pid)
    if not handle:
        return None
    handle = ctypes.c_void_p(handle)
    try:
        code = ctypes.c_uint32(0)
        times = (ctypes.c_uint64 * 4)()
        pointers = [ctypes.byref(times, 8 * index) for index in range(4)]
        if not kernel32.GetExitCodeProcess(handle, ctypes.byref(code)):
            raise ctypes.WinError(ctypes.get_last_error())
        if code.value != _STILL_ACTIVE:
            return None
        if not kernel32.GetProcessTimes(handle, *pointers):
            raise ctypes.WinError(ctypes.get_last_error())
        return times[0], times[1], times[2], times[3]
    finally:
        kernel32.CloseHandle(handle)


def _windows_kill(identity: ProcessIdentity) -> None:
    if sys.platform != "win32" or not is_alive(identity):
        return
    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel32.OpenProcess.restype = ctypes.c_void_p
    handle = kernel32.OpenProcess(_PROCESS_TERMINATE, False, identity.pid)
    if not handle:
        raise ctypes.WinError(ctypes.get_last_error())
    try:
        kernel32.TerminateProcess(ctypes.c_void_p(handle), 1)
    finally:
        kernel32.CloseHandle(ctypes.c_void_p(handle))
