"""Is a process still at work, or only still there? What it does every few seconds tells.

A lock is freed by the kernel when its holder dies, not when it hangs. So the holder keeps a file
with its identity whose modification time is its heartbeat. Clocks are set and hosts sleep: nobody
is called hung for the age of a beat alone, but for having been watched without another one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from wherry.osutil.files import atomic_write
from wherry.osutil.process import ProcessIdentity, identify, is_alive

BEAT_SECONDS = 2.0

PATIENCE_SECONDS = 15.0
"""Watched for so long without a beat a process is hung: a slow disk or a busy host needs less."""

SHORT_PATIENCE_SECONDS = 5.0
"""The same where the last beat is older than PATIENCE_SECONDS when the watch begins: the host may
have slept, and a process that can beat does so within BEAT_SECONDS of waking up."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who beats, since when (ns since the epoch), and of which version."""

    identity: ProcessIdentity
    started_ns: int
    version: str


class Pulse:
    """This process's heartbeat in `file`: none before the first beat."""

    def __init__(self, file: Path, version: str) -> None:
        identity = identify(os.getpid())
        assert identity is not None, "we are alive"
        self._file = file
        self._written = False
        content = asdict(Holder(identity, time.time_ns(), version))
        self._content = json.dumps(content).encode() + b"\n"

    def beat(self) -> None:
        """Raises OSError when the file is gone, or cannot be made: it is tried at each beat."""
        if not self._written:
            atomic_write(self._file, self._content)
            self._written = True
        os.utime(self._file)

    def end(self) -> None:
        """The process ends as it should: there is nothing to watch any more."""
        self._file.unlink(missing_ok=True)


def read_holder(file: Path) -> Holder | None:
    """Who wrote the file; None when it is missing or damaged."""
    try:
        data = json.loads(file.read_bytes())
        identity = ProcessIdentity(int(data["identity"]["pid"]), data["identity"]["start_time"])
        return Holder(identity, int(data["started_ns"]), str(data["version"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def last_beat(file: Path) -> int | None:
    """In ns since the epoch; None when there is no file."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


class Watch:
    """Watches a heartbeat from now on, as often as `hung` is called."""

    def __init__(
        self,
        file: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._file = file
        self._clock = clock
        self._beat = last_beat(file)
        self._since = clock()
        old = self._beat is not None and now_ns() - self._beat >= PATIENCE_SECONDS * 1e9
        self._patience = SHORT_PATIENCE_SECONDS if old else PATIENCE_SECONDS

    @property
    def beating(self) -> bool:
        """Whether a beat was seen since the watch began."""
        return last_beat(self._file) != self._beat

    def hung(self) -> ProcessIdentity | None:
        """The process that is there and has been silent for too long; None: there is none (yet)."""
        beat = last_beat(self._file)
        if beat is None or beat != self._beat:
            self._beat, self._since, self._patience = beat, self._clock(), PATIENCE_SECONDS
            return None
        if self._clock() - self._since < self._patience:
            return None
        holder = read_holder(self._file)
        if holder is None or not is_alive(holder.identity):
            return None
        return holder.identity
