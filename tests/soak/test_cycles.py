"""Machines are started and stopped over and over: no process, file, descriptor or megabyte stays.

Ten cycles; with WHERRY_SOAK=1 two hundred. A container runs in each.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults import BUSYBOX, leftovers, new_home
from harness import Wherry
from soak_table import record
from waiting import eventually

LONG = os.environ.get("WHERRY_SOAK") == "1"
CYCLES = 200 if LONG else 10
WARM = 3
POOL = min(32, (os.cpu_count() or 1) + 4)
"""Threads that asyncio makes for blocking work as they are first needed (concurrent.futures)."""
"""Cycles before anything is counted: what is allocated once is allocated then."""

GROWTH_KIB = 4096
"""Memory that the engine may have more: Python's arenas fill up unevenly."""

DISK_GROWTH = 8 << 20
"""Bytes of all files but logs: the guest's file system begins to use what it had not."""

pytestmark = [
    pytest.mark.vm,
    pytest.mark.soak,
    pytest.mark.timeout(3600 if LONG else 300),
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc"),
]


@pytest.fixture
def wherry(test_cache: Path) -> Iterator[Wherry]:
    """A state directory of its own: nobody else starts anything in it."""
    root = Path(tempfile.mkdtemp(prefix="wh-"))
    it = Wherry(new_home(root, test_cache))
    yield it
    it.run("machine", "rm", "--force", timeout=60)
    assert not (root / "machines" / "default").exists()


@dataclass(frozen=True, slots=True)
class Traces:
    """What cycles could leave behind."""

    descriptors: int
    threads: int
    rss_kib: int
    processes: frozenset[str]
    files: frozenset[str]
    bytes: int


def traces(wherry: Wherry) -> Traces:
    engine = Path("/proc", str(wherry.engine_pid()))
    status = dict(
        line.split(":", 1) for line in (engine / "status").read_text().splitlines() if ":" in line
    )
    root = wherry.home.root
    own = [path for path in root.rglob("*") if path.is_file() and path.suffix != ".log"]
    return Traces(
        descriptors=len(list((engine / "fd").iterdir())),
        threads=int(status["Threads"]),
        rss_kib=int(status["VmRSS"].split()[0]),
        processes=processes_of(wherry),
        files=frozenset(leftovers(root)),
        bytes=sum(path.stat().st_blocks * 512 for path in own),
    )


def processes_of(wherry: Wherry) -> frozenset[str]:
    """Pid and command of the processes that name the state directory, or live in it."""
    found = set()
    root = os.fspath(wherry.home.root)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
            place = os.fspath((process / "cwd").readlink())
        except OSError:
            continue  # it has ended
        if root in command or place.startswith(root):
            found.add(f"{process.name} {' '.join(command.split(chr(0))[:4])}")
    return frozenset(found)


def cycle(wherry: Wherry) -> None:
    done = wherry.run("run", "--rm", BUSYBOX, "true", timeout=150)
    assert done.returncode == 0, done.stderr
    wherry.run("machine", "stop", check=True)


def is_saved(wherry: Wherry) -> bool:
    return wherry.run("machine", "template", timeout=200).returncode == 0


def test_starts_and_stops_leave_nothing_behind(wherry: Wherry) -> None:
    cycle(wherry)
    # Another test may be saving one: then it is waited for.
    eventually("later starts are restores", lambda: is_saved(wherry), 200)
    for _ in range(WARM):
        cycle(wherry)
    engine = f"{wherry.engine_pid()} "

    def alone() -> bool:
        others[:] = [it for it in processes_of(wherry) if not it.startswith(engine)]
        return not others

    others: list[str] = []
    eventually(f"only the engine runs, not {others}", alone)
    before = traces(wherry)
    begun = time.monotonic()
    for _ in range(CYCLES):
        cycle(wherry)
    seconds = (time.monotonic() - begun) / CYCLES
    eventually("only the engine runs", alone)
    after = traces(wherry)
    assert after.descriptors <= before.descriptors
    assert after.threads <= max(before.threads, POOL + 1)
    assert after.files == before.files
    assert after.rss_kib - before.rss_kib < GROWTH_KIB
    assert after.bytes - before.bytes < DISK_GROWTH
    record(
        "start, container, stop",
        CYCLES,
        f"{seconds:.2f} s each; engine {after.rss_kib - before.rss_kib:+} KiB,"
        f" {after.descriptors - before.descriptors:+} descriptors,"
        f" {(after.bytes - before.bytes) >> 10:+} KiB on disk",
    )
