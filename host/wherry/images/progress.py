"""Progress of a pull, in Docker's words, from several threads to one callback.

Statuses of a layer, in order: Pulling fs layer, Waiting, Downloading, Download complete,
Extracting, Pull complete; or Already exists.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_INTERVAL_SECONDS = 0.1
"""Between two messages of one layer that differ in their numbers only."""


@dataclass(frozen=True, slots=True)
class PullEvent:
    """One line of progress.

    Attributes:
        status: Docker's words.
        id: what it is about: a layer's twelve digits, a tag, or "".
        current, total: bytes; 0 when not said.
    """

    status: str
    id: str = ""
    current: int = 0
    total: int = 0


class Reporter:
    """Calls `callback`, one thread at a time. `stop` is set when the work is to end."""

    def __init__(
        self,
        callback: Callable[[PullEvent], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stop = threading.Event()
        self._callback = callback
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[str, tuple[str, float]] = {}

    def say(self, status: str, about: str = "") -> None:
        """A line that stands for itself."""
        if self._callback is not None:
            with self._lock:
                self._callback(PullEvent(status, about))

    def layer(self, blob: str, status: str, current: int = 0, total: int = 0) -> None:
        """What happens to a layer. An exception of the callback passes through."""
        if self._callback is None:
            return
        with self._lock:
            now = self._clock()
            last_status, last_time = self._last.get(blob, ("", 0.0))
            too_soon = now - last_time < _INTERVAL_SECONDS and current != total
            if status == last_status and too_soon:
                return
            self._last[blob] = (status, now)
            short = blob.removeprefix("sha256:")[:12]
            self._callback(PullEvent(status, short, current, total))
