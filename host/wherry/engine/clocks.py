"""The guest's clock is the host's, also after the host slept.

A guest's clock stands still while its host sleeps, or while somebody pauses it. The host's sleep is
seen by its clocks: the time of day has gone on and the steady clock has not (macOS, Linux), or both
have gone on much further than the wait was long (Windows). Then, at each handshake with the agent,
and whenever a paused guest goes on, it is told the time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from wherry.engine.ports import LinkPort, MachinePort
from wherry.errors import LinkError

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
JUMP_SECONDS = 0.25
"""The clocks' disagreement that is no adjustment by NTP, which slews by 0.5 ms in a second."""
LATE_SECONDS = 5.0
"""A wait that took so much longer was no busy loop's."""


class Jumps:
    """Whether the time of day has jumped since it was last asked. Sans-I/O.

    Args:
        wall, steady: seconds; the time of day, and a clock that nobody sets.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self._steady = steady
        self._last = wall(), steady()

    def seen(self, waited: float) -> bool:
        """Ask again, after a wait that was to take `waited` seconds."""
        wall, steady = self._wall(), self._steady()
        day, elapsed = wall - self._last[0], steady - self._last[1]
        self._last = wall, steady
        return abs(day - elapsed) > JUMP_SECONDS or elapsed > waited + LATE_SECONDS


class GuestClock:
    """Keeps the guest's clock right.

    Args:
        spawn: runs work in the background.
    """

    def __init__(
        self,
        machine: MachinePort,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        jumps: Jumps | None = None,
    ) -> None:
        self._machine = machine
        self._spawn = spawn
        self._jumps = jumps or Jumps()

    def start(self) -> None:
        self._machine.on_link(lambda _link: self.set_soon())
        self._machine.on_pause(self._paused)
        self._spawn(self._watch())

    def set_soon(self) -> None:
        link: LinkPort | None = self._machine.link
        if link is not None and self._machine.paused is None:
            self._spawn(self._set(link))

    def looked(self, waited: float) -> None:
        """A look at the clocks; see `Jumps.seen`."""
        if self._jumps.seen(waited):
            log.info("the host slept, or its clock was set: the guest is told the time")
            self.set_soon()

    def _paused(self, reason: str | None) -> None:
        if reason is None:
            self.set_soon()

    async def _set(self, link: LinkPort) -> None:
        try:
            await link.call("system.set_time", {"time_ns": time.time_ns()})
        except LinkError as error:
            log.warning("the guest's clock is not set: %s", error)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.looked(LOOK_SECONDS)
