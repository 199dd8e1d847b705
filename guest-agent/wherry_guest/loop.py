"""The guest's event loop: readiness callbacks, timers and nothing else.

One thread, no futures, no coroutines: asyncio costs too much under emulation, where Python runs ten
to fifty times slower. A callback takes no arguments, must not block, and an exception in one leaves
`run()`, unless `on_error` takes it. Stdlib only, any OS.
"""

from __future__ import annotations

import heapq
import selectors
import time
from collections import deque
from collections.abc import Callable

Callback = Callable[[], None]

_READ = selectors.EVENT_READ
_WRITE = selectors.EVENT_WRITE


class Timer:
    """A pending `call_later`. `cancel()` may be called at any time, also after it ran."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callback) -> None:
        self.when = when
        self.callback: Callback | None = callback

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when

    def cancel(self) -> None:
        self.callback = None


class _Watch:
    """The callbacks of one file descriptor."""

    __slots__ = ("events", "reader", "writer")

    def __init__(self, events: int, reader: Callback | None, writer: Callback | None) -> None:
        self.events = events
        self.reader = reader
        self.writer = writer


class Loop:
    """Runs callbacks when descriptors are ready and when time has come.

    Readiness is level-triggered; a hang-up counts as readable and writable. One round runs the
    descriptors that are ready, then the timers that are due, then what `call_soon` was given up to
    there, also in this round: that is the place to flush what several callbacks have gathered.

    Args:
        on_error: takes an exception that a callback raised; without it, it leaves `run()`.
    """

    def __init__(self, on_error: Callable[[Exception], None] | None = None) -> None:
        self._selector = selectors.DefaultSelector()
        self._watches: dict[int, _Watch] = {}
        self._soon: deque[Callback] = deque()
        self._timers: list[Timer] = []
        self._on_error = on_error
        self._stopping = False

    def add_reader(self, fd: int, callback: Callback) -> None:
        """Call `callback` whenever `fd` is readable; replaces an earlier reader of `fd`."""
        watch = self._watches.get(fd)
        self._set(fd, callback, watch.writer if watch else None)

    def remove_reader(self, fd: int) -> bool:
        """Returns whether there was one. Call it before `fd` is closed."""
        watch = self._watches.get(fd)
        if watch is None or watch.reader is None:
            return False
        self._set(fd, None, watch.writer)
        return True

    def add_writer(self, fd: int, callback: Callback) -> None:
        """Call `callback` whenever `fd` is writable; replaces an earlier writer of `fd`."""
        watch = self._watches.get(fd)
        self._set(fd, watch.reader if watch else None, callback)

    def remove_writer(self, fd: int) -> bool:
        """Returns whether there was one. Call it before `fd` is closed."""
        watch = self._watches.get(fd)
        if watch is None or watch.writer is None:
            return False
        self._set(fd, watch.reader, None)
        return True

    def call_soon(self, callback: Callback) -> None:
        """Run `callback` at the end of this round, or in the next one when that has begun."""
        self._soon.append(callback)

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        """Run `callback` once, at least `seconds` from now."""
        timer = Timer(self.time() + seconds, callback)
        heapq.heappush(self._timers, timer)
        return timer

    @staticmethod
    def time() -> float:
        """The clock of the timers, in seconds; it never goes back."""
        return time.monotonic()

    def run(self) -> None:
        """Serve until `stop()`."""
        try:
            while not self._stopping:
                self._round()
        finally:
            self._stopping = False

    def stop(self) -> None:
        """Leave `run()` at the end of this round."""
        self._stopping = True

    def close(self) -> None:
        """Give back the selector; descriptors that were watched stay open."""
        self._selector.close()

    def _round(self) -> None:
        ready = self._selector.select(self._patience())
        for key, events in ready:
            watch: _Watch = key.data
            # A callback may have removed the other one, or the whole watch: look afresh each time.
            if events & _READ and watch.reader is not None:
                self._call(watch.reader)
            if events & _WRITE and watch.writer is not None:
                self._call(watch.writer)
        if self._timers:
            self._run_timers()
        for _ in range(len(self._soon)):
            self._call(self._soon.popleft())

    def _patience(self) -> float | None:
        """How long this round may sleep: None for ever."""
        if self._soon or self._stopping:
            return 0
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(0.0, self._timers[0].when - self.time())

    def _run_timers(self) -> None:
        now = self.time()
        while self._timers and self._timers[0].when <= now:
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                self._call(callback)

    def _call(self, callback: Callback) -> None:
        if self._on_error is None:
            callback()
            return
        try:
            callback()
        except Exception as error:  # noqa: BLE001  # the agent outlives a bug; its hook reports it
            self._on_error(error)

    def _set(self, fd: int, reader: Callback | None, writer: Callback | None) -> None:
        events = (_READ if reader else 0) | (_WRITE if writer else 0)
        watch = self._watches.get(fd)
        if watch is None:
            if events:
                watch = self._watches[fd] = _Watch(events, reader, writer)
                self._selector.register(fd, events, watch)
            return
        watch.reader, watch.writer = reader, writer
        if not events:
            del self._watches[fd]
            self._selector.unregister(fd)
        elif events != watch.events:
            self._selector.modify(fd, events, watch)
        watch.events = events
