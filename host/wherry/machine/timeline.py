"""How the last starts of a machine went: phases, one behind the other, and how long each took.

`Recorder` is told when a phase begins (what began before ends then) and gives a `Start`, a plain
value. The last KEPT of them stand in a file, failed ones with the phase in which they died; the
command line reads it as it is, engine or not: [{"began_ns", "kind", "phases": [{"name",
"seconds"}], "failed", "reason"}, …], the newest last.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wherry.osutil import replace_file

logger = logging.getLogger(__name__)

KEPT = 20

ENGINE, PREPARE, QEMU = "engine", "prepare", "qemu"

PHASE_NAMES = {
    "index": "image",
    "download": "image",
    "unpack": "image",
    "write": "image",
    "spawned": QEMU,
}
"""What progress is reported as, to the phase that it is part of; what is not here is one itself."""

_ENGINE_BELONGS_SECONDS = 10.0
"""A start that begins so soon after its engine's is the one that the engine was started for."""


@dataclass(frozen=True, slots=True)
class Phase:
    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a machine.

    Attributes:
        began_ns: since the epoch; with the engine's own start when that belongs to it.
        kind: boot or restore.
        phases: in order; a failed start's last one is the one that it died in.
        failed: the phase in which it died, reason: of what; None: the machine was ready.
    """

    began_ns: int
    kind: str
    phases: tuple[Phase, ...]
    failed: str | None = None
    reason: str | None = None

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"seconds": round(self.seconds, 4)}


class Recorder:
    """Watches the starts of one machine. Not thread-safe: tell it things on one thread."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._clock = clock
        self._wall_ns = wall_ns
        self._engine: tuple[int, float, float] | None = None
        self._began_ns = 0
        self._marks: list[tuple[str, float]] = []
        self._before: tuple[Phase, ...] = ()

    def engine_ready(self, spawned_ns: int) -> None:
        """The engine, which a client started at `spawned_ns`, answers from now on."""
        seconds = (self._wall_ns() - spawned_ns) / 1e9
        if seconds >= 0:  # else the clock was set meanwhile
            self._engine = (spawned_ns, seconds, self._clock())

    def begin(self) -> None:
        """A start begins."""
        self._began_ns, self._before = self._wall_ns(), ()
        self._marks = [(PREPARE, self._clock())]
        if self._engine is not None:
            spawned_ns, seconds, ready = self._engine
            self._engine = None
            if self._clock() - ready < _ENGINE_BELONGS_SECONDS:
                self._began_ns, self._before = spawned_ns, (Phase(ENGINE, round(seconds, 4)),)

    def phase(self, name: str) -> None:
        """`name` (progress's, see PHASE_NAMES) begins, or goes on."""
        name = PHASE_NAMES.get(name, name)
        if self._marks and self._marks[-1][0] != name:
            self._marks.append((name, self._clock()))

    def done(self) -> Start:
        """The machine is ready."""
        return self._start(None, None)

    def failed(self, reason: str) -> Start:
        """The start has died in the current phase."""
        return self._start(self._marks[-1][0], reason)

    @contextmanager
    def recorded(self, file: Path) -> Iterator[None]:
        """A start is what the block does; it is written to `file`, however it ends."""
        self.begin()
        try:
            yield
        except asyncio.CancelledError:
            _keep(file, self.failed("it was broken off"))
            raise
        except BaseException as error:
            _keep(file, self.failed(str(error).partition("\n")[0] or type(error).__name__))
            raise
        _keep(file, self.done())

    def _start(self, failed: str | None, reason: str | None) -> Start:
        ends = [*(mark[1] for mark in self._marks[1:]), self._clock()]
        phases = tuple(
            Phase(name, round(end - began, 4))
            for (name, began), end in zip(self._marks, ends, strict=False)
        )
        kind = "restore" if any(phase.name == "restore" for phase in phases) else "boot"
        return Start(self._began_ns, kind, (*self._before, *phases), failed, reason)


def add_start(file: Path, start: Start) -> None:
    """Write it behind the others; only the last KEPT stay.

    Raises:
        OSError: it cannot be written.
    """
    starts = [*read_starts(file), start.as_json()][-KEPT:]
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_text(json.dumps(starts) + "\n", encoding="utf-8")  # not synced: the user waits
    replace_file(temporary, file)


def read_starts(file: Path) -> list[dict[str, Any]]:
    """The starts in the file, oldest first; none when it is missing or damaged: it is history."""
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return []
    return [start for start in data if isinstance(start, dict)] if isinstance(data, list) else []


def _keep(file: Path, start: Start) -> None:
    try:
        add_start(file, start)
    except OSError as error:
        logger.warning("the timeline of this start is not kept: %s", error)
