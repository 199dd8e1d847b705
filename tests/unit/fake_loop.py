"""An event loop whose time is a test's: nothing sleeps, timers run when the test lets them."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from wherry_guest.loop import Loop, Timer


class FakeLoop(Loop):
    """Only time, timers and `call_soon`; descriptors are never ready."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self._due: list[tuple[float, int, Timer]] = []
        self._count = 0

    def time(self) -> float:  # type: ignore[override]  # the real one needs no object
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(self.now + seconds, callback)
        self._count += 1
        heapq.heappush(self._due, (timer.when, self._count, timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Let time pass: what is due runs at its time, also what that has asked for."""
        end = self.now + seconds
        while self._due and self._due[0][0] <= end:
            when, _, timer = heapq.heappop(self._due)
            self.now = max(self.now, when)
            if (callback := timer.callback) is not None:
                callback()
        self.now = end
