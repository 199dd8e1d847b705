"""Does a process do anything? What the kernel tells of one that does not answer."""

from __future__ import annotations

import enum
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from wherry.osutil.process import is_stopped_on_macos, stat_fields, windows_cpu_seconds


class Doing(enum.Enum):
    STOPPED = "stopped"
    """By a signal or a debugger: it does nothing until somebody lets it go on."""
    DISK = "disk"
    """A thread of it waits in the kernel and cannot be interrupted, mostly for a disk."""
    RUNNABLE = "runnable"
    ASLEEP = "asleep"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Activity:
    """`cpu_seconds`: what all of its threads have used so far; None where that is not known."""

    doing: Doing
    cpu_seconds: float | None


def activity(pid: int) -> Activity | None:
    """None: there is no such process."""
    if sys.platform == "win32":
        used = windows_cpu_seconds(pid)
        return None if used is None else Activity(Doing.UNKNOWN, used)
    if sys.platform == "darwin":
        stopped = is_stopped_on_macos(pid)
        return None if stopped is None else Activity(_stopped_or_unknown(stopped), None)
    return _of_threads(Path(f"/proc/{pid}/task"))


def _of_threads(tasks: Path) -> Activity | None:
    if sys.platform == "win32":
        return None
    letters = set()
    ticks = 0
    try:
        threads = list(tasks.iterdir())
    except OSError:
        return None
    for thread in threads:
        try:
            letter, used = of_stat((thread / "stat").read_bytes())
        except OSError:
            continue  # it ended meanwhile
        letters.add(letter)
        ticks += used
    return Activity(of_letters(letters), ticks / os.sysconf("SC_CLK_TCK")) if letters else None


def of_stat(text: bytes) -> tuple[str, int]:
    """State and used ticks (utime, stime) of proc_pid_stat(5)."""
    fields = stat_fields(text)
    return fields[0].decode("ascii"), int(fields[11]) + int(fields[12])


def of_letters(letters: set[str]) -> Doing:
    """What a process with threads in these states does."""
    if letters <= {"T", "t"}:
        return Doing.STOPPED
    if "R" in letters:
        return Doing.RUNNABLE
    return Doing.DISK if "D" in letters else Doing.ASLEEP


def _stopped_or_unknown(stopped: bool) -> Doing:
    return Doing.STOPPED if stopped else Doing.UNKNOWN
