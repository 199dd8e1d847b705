"""Emulated programs that died and cannot end: the first process of a container.

qemu-user ends as its program would: it gives the signal back its default action, sends it to
itself and waits for it (linux-user/signal.c, die_with_signal). A pid namespace's first process is
immune to signals of its own, so there it would wait for ever. Nothing tells of that, so it is
looked for, in containers of other architectures only; the kill and the exit code are ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from wherry_guest.loop import Loop

INTERVAL: Final = 1.0
"""Seconds between two looks; one costs two small reads per thread."""

_os: Final[Any] = os

_RT_SIGSUSPEND: Final = {"x86_64": "130", "aarch64": "133"}
"""The emulator's own system call: asm/unistd_64.h, asm-generic/unistd.h."""

_FATAL: Final = frozenset({4, 5, 6, 7, 8, 11, 31})
"""ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS: what a processor, or abort(3), ends a program with."""

_NEVER_BLOCKED: Final = frozenset({9, 19})
"""KILL and STOP."""


class CrashWatch:
    """Looks at one process until it is gone.

    Args:
        on_crash: called once, with the signal that it means to die of.
    """

    def __init__(self, loop: Loop, pid: int, on_crash: Callable[[int], None]) -> None:
        self._loop = loop
        self._process = Path(f"/proc/{pid}")
        self._on_crash = on_crash
        self._timer = loop.call_later(INTERVAL, self._look)

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        number = dying_of(self._process, _os.uname().machine)
        if number is not None:
            self._on_crash(number)
        else:
            self._timer = self._loop.call_later(INTERVAL, self._look)


def dying_of(process: Path, machine: str) -> int | None:
    """The signal that one of the process's threads waits to die of; None while it lives.

    Args:
        process: its directory in /proc. machine: uname's, of the kernel that it runs on.
    """
    try:
        threads = sorted((process / "task").iterdir())
    except FileNotFoundError:
        return None
    for thread in threads:
        try:
            waits = (thread / "syscall").read_text(encoding="ascii").split(" ", 1)[0]
            if waits != _RT_SIGSUSPEND.get(machine):
                continue
            number = _awaited(_masks((thread / "status").read_text(encoding="utf-8")))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since
        if number is not None:
            return number
    return None


def _awaited(masks: dict[str, int]) -> int | None:
    """The one signal that is not blocked, when it is fatal and has its default action."""
    blocked, handled = masks.get("SigBlk", 0), masks.get("SigCgt", 0) | masks.get("SigIgn", 0)
    free = {it for it in range(1, 32) if not blocked >> (it - 1) & 1} - _NEVER_BLOCKED
    if len(free) != 1:
        return None
    (number,) = free
    return number if number in _FATAL and not handled >> (number - 1) & 1 else None


def _masks(status: str) -> dict[str, int]:
    """proc_pid_status(5): SigBlk, SigCgt, SigIgn as numbers, bit 0 for signal 1."""
    pairs = (line.split(":\t", 1) for line in status.splitlines() if line.startswith("Sig"))
    return {name: int(value, 16) for name, value in pairs if name != "SigQ"}
