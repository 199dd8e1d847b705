"""Samples, and processes measured from outside: wall time, and the peak of their memory."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

RUN_SECONDS = 300.0
_PEAK_INTERVAL = 0.02
_KIB = 1024


@dataclass(slots=True)
class Samples:
    """What one thing took, round by round, all in one unit."""

    values: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        self.values.append(value)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the seconds that the block takes, when it does not raise."""
        begun = time.perf_counter()
        yield
        self.add(time.perf_counter() - begun)

    def map(self, function: Callable[[float], float]) -> Samples:
        return Samples([function(value) for value in self.values])

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that has ended well. `peak_bytes`: its largest resident set, sampled."""

    seconds: float
    peak_bytes: int
    stdout: str


def run_tree(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> Finished:
    """As `run`, but `peak_bytes` is of the process and all below it, together."""
    return run(argv, env=env, tree=True)


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    tree: bool = False,
) -> Finished:
    """Run a program to its end.

    Raises:
        AssertionError: it failed; with what it wrote.
    """
    begun = time.perf_counter()
    process = subprocess.Popen(
        argv,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with (_TreePeak if tree else _Peak)(process.pid) as peak:
        try:
            stdout, stderr = process.communicate(timeout=RUN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
    seconds = time.perf_counter() - begun
    assert process.returncode == 0, f"{' '.join(argv)} ended with {process.returncode}\n{stderr}"
    return Finished(seconds, peak.bytes, stdout)


class _Peak:
    """Reads VmHWM while a process runs: the kernel's own ru_maxrss of a child begins with the
    memory of whoever forked it."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._pid = pid
        self._status = Path(f"/proc/{pid}/status")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_PEAK_INTERVAL):
            try:
                lines = self._status.read_text().splitlines()
            except OSError:
                return
            found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
            self.bytes = max(self.bytes, *(kib * _KIB for kib in found), 0)


class _TreePeak(_Peak):
    """The largest sum of the resident sets of a process and its descendants, sampled; what they
    share counts for each."""

    def _watch(self) -> None:
        while not self._ended.wait(_PEAK_INTERVAL):
            self.bytes = max(self.bytes, sum(_resident(pid) for pid in _descendants(self._pid)))


def _descendants(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # it has ended
                found += [int(child) for child in children.read_text().split()]
    return found


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * _KIB for line in lines if line.startswith("VmRSS:"))
