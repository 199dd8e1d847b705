"""OOM kills, as they happen: one inotify descriptor over the memory.events of all containers."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wherry_guest.core.libc import oserror
from wherry_guest.loop import Loop

_os: Final[Any] = os

_IN_MODIFY: Final = 0x2
"""uapi/linux/inotify.h; kernfs sends it whenever a cgroup's events file changes."""

_EVENT_BYTES: Final = 16
"""sizeof(struct inotify_event); a watched file has no name in it."""


@dataclass(slots=True)
class _Watched:
    file: Path
    kills: int
    on_kill: Callable[[], None]


class OomWatcher:
    """Calls back when a process of a cgroup was killed for want of memory."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._libc: Any = None
        self._fd = -1
        self._watched: dict[int, _Watched] = {}

    def watch(self, memory_events: Path, on_kill: Callable[[], None]) -> int | None:
        """Begin; returns what `unwatch` takes, None when the cgroup has no memory controller."""
        if self._libc is None:
            self._libc = ctypes.CDLL(None, use_errno=True)  # once: each makes a class of its own
        libc = self._libc
        if self._fd < 0:
            self._fd = libc.inotify_init1(_os.O_CLOEXEC | _os.O_NONBLOCK)
            if self._fd < 0:
                oserror("inotify_init1")
            self._loop.add_reader(self._fd, self._changed)
        watch: int = libc.inotify_add_watch(self._fd, os.fsencode(memory_events), _IN_MODIFY)
        if watch < 0:
            if ctypes.get_errno() == errno.ENOENT:
                return None
            oserror("inotify_add_watch", str(memory_events))
        self._watched[watch] = _Watched(memory_events, oom_kills(memory_events), on_kill)
        return watch

    def unwatch(self, watch: int) -> int:
        """Look once more, then forget; the kernel drops its part with the cgroup. All its kills."""
        self._look(watch)
        watched = self._watched.pop(watch, None)
        return 0 if watched is None else watched.kills

    def _changed(self) -> None:
        data = os.read(self._fd, 64 * _EVENT_BYTES)
        changed = {
            int.from_bytes(data[at : at + 4], "little", signed=True)
            for at in range(0, len(data), _EVENT_BYTES)
        }
        for watch in changed:
            self._look(watch)

    def _look(self, watch: int) -> None:
        watched = self._watched.get(watch)
        if watched is None:
            return
        kills = oom_kills(watched.file)
        if kills > watched.kills:
            watched.kills = kills
            watched.on_kill()


def oom_kills(memory_events: Path) -> int:
    """How many processes of the cgroup were OOM-killed; 0 when the file is gone or never was."""
    try:
        text = memory_events.read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return 0
