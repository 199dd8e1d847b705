"""A machine in which nothing runs is put aside after a while, and comes back when it is needed.

Off unless the setting `idle_stop` says after how long. Its memory goes into a file, and QEMU ends;
whatever needs the guest has it taken up again, as it was. Where machines cannot be saved (Windows,
vsock) it is stopped instead: with nothing running, the next start is as good.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable

from wherry.engine.ports import MachinePort
from wherry.engine.presence import Presence
from wherry.engine.registry import Registry
from wherry.errors import Conflict, WherryError
from wherry.machine import MachineState

log = logging.getLogger(__name__)

_LOOKS = 8
_LONGEST_LOOK = 15.0
"""It is looked often enough that a machine is put aside an eighth, or 15 s, late."""

_QUIET = re.compile(r"GET (/v[0-9.]+)?/(events|_ping)$")
"""Requests that need no machine, however long they last."""

_NEEDS_GUEST = re.compile(
    r"[A-Z]+ (/v[0-9.]+)?/(containers/[^/]+/(logs|archive|export|changes|attach|resize)"
    r"|containers/[^/]+/attach/ws|commit|system/df|volumes/prune"
    r"|wherry/v1/(machine/(guest|ssh|trim).*))$"
)
"""Requests that are answered by the guest, and do not start it themselves: a machine that was put
aside goes on for them."""


class Idle:
    """Watches over one machine.

    Args:
        after: seconds; 0: never.
        clock: seconds that nobody sets.
    """

    def __init__(
        self,
        machine: MachinePort,
        registry: Registry,
        presence: Presence,
        after: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._machine = machine
        self._registry = registry
        self._presence = presence
        self._after = after
        self._clock = clock
        self._since: float | None = None

    def due(self) -> bool:
        """Whether nothing has needed the machine for long enough. To be asked now and then."""
        needed = (
            self._machine.state is not MachineState.RUNNING
            or self._machine.paused is not None
            or any(True for _ in self._registry.running())
            or any(not _QUIET.match(what) for what in self._presence.work)
        )
        now = self._clock()
        if needed:
            self._since = None
        elif self._since is None:
            self._since = now
        return self._since is not None and now - self._since >= self._after

    async def put_aside(self) -> None:
        """Save the machine and end it; what goes wrong is logged, and it runs on."""
        self._since = None
        log.info("nothing has run for %g s: the machine is put aside", self._after)
        try:
            await self._machine.suspend()
        except Conflict as error:
            log.info("it is stopped instead: %s", error)
            await self._machine.stop()
        except (WherryError, OSError) as error:
            log.warning("the idle machine runs on: %s", error)

    async def watch(self) -> None:
        """For as long as the engine lives; returns at once when the setting is off."""
        if not self._after:
            return
        while True:
            await asyncio.sleep(min(_LONGEST_LOOK, self._after / _LOOKS))
            if self.due():
                await self.put_aside()

    async def wake_for(self, what: str) -> None:
        """Have a machine that was put aside go on when the request `METHOD PATH` needs it.

        Raises:
            WherryError: it cannot be started.
        """
        if self._machine.link is None and _NEEDS_GUEST.match(what) and self._machine.suspended:
            await self._machine.ensure_running()
