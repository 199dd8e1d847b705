"""A log that never makes its container wait: Docker's `mode=non-blocking`.

Rules: while the disk takes output, all is as with any log. While it is full, output is kept in
memory, up to a limit, and written when there is room; what comes beyond that is thrown away and
counted. The newest is lost, as with Docker's engine. What is in memory goes with a killed agent.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from wherry_guest.agent.logfile import available
from wherry_guest.agent.logframes import FULL_PAYLOAD
from wherry_guest.agent.logs import Follower, Log, Sink
from wherry_guest.loop import Loop, Timer

RETRY: Final = 0.5
"""Seconds between two tries to write what waits."""


class RingLog:
    """A `Log` with `limit` bytes of memory before it.

    Attributes:
        lost: bytes that were thrown away, or wait and have no place yet.
    """

    ready: Final = True

    def __init__(self, loop: Loop, log: Log, limit: int) -> None:
        self._loop = loop
        self._log = log
        self._limit = limit
        self._held: deque[tuple[int, bytes, int]] = deque()
        self._bytes = 0
        self._dropped = 0
        self._timer: Timer | None = None

    @property
    def size(self) -> int:
        return self._log.size

    @property
    def first(self) -> int:
        return self._log.first

    @property
    def lost(self) -> int:
        return self._dropped + self._bytes

    def end_offset(self) -> int:
        return self._log.end_offset()

    def when_ready(self, callback: Callable[[], None]) -> None:
        callback()

    def take(self, pipe: int, stream: int) -> int | None:
        """As `Log.take`, but a full disk is no error."""
        if self._held:
            self._write_held()
        if not self._held:
            try:
                return self._log.take(pipe, stream)
            except OSError as error:
                _check_full(error)
        return self._hold(pipe, stream)

    def follow(self, sink: Sink, offset: int, follow: bool) -> Follower:
        return self._log.follow(sink, offset, follow)

    def unfollow(self, follower: Follower) -> None:
        self._log.unfollow(follower)

    def writable(self, follower: Follower) -> None:
        self._log.writable(follower)

    def start(self) -> None:
        self._log.start()

    def finish(self) -> None:
        self._stop()
        self._log.finish()

    def abandon(self) -> None:
        self._stop()
        self._log.abandon()

    def _hold(self, pipe: int, stream: int) -> int | None:
        length = available(pipe)
        if not length:
            return length
        data = os.read(pipe, min(length, FULL_PAYLOAD))
        if self._bytes + len(data) > self._limit:
            self._dropped += len(data)
        else:
            self._held.append((stream, data, time.time_ns()))
            self._bytes += len(data)
            if self._timer is None:
                self._timer = self._loop.call_later(RETRY, self._try_again)
        return len(data)

    def _write_held(self) -> None:
        while self._held:
            stream, data, time_ns = self._held[0]
            try:
                self._log.write(stream, data, time_ns)
            except OSError as error:
                _check_full(error)
                return
            self._held.popleft()
            self._bytes -= len(data)

    def _try_again(self) -> None:
        self._timer = None
        self._write_held()
        if self._held:
            self._timer = self._loop.call_later(RETRY, self._try_again)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._dropped += self._bytes
        self._bytes = 0
        self._held.clear()


def _check_full(error: OSError) -> None:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise error
