"""The room of what was pruned goes back to the host: the guest trims its disk, once for many."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from wherry.engine.guest import Guest
from wherry.engine.removals import Removals
from wherry.errors import LinkError, MachineError

log = logging.getLogger(__name__)

TRIM_SECONDS = 120.0
_GRACE = 90.0
"""Beyond that, for what was removed to be deleted."""
_REMOVALS = 10.0
"""For the guest to hear of what was removed."""


class Trims:
    """Args:
    spawn: runs work in the background.
    """

    def __init__(
        self,
        guest: Guest,
        removals: Removals,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._guest = guest
        self._removals = removals
        self._spawn = spawn
        self._wanted = False
        self._turn = asyncio.Lock()

    def soon(self) -> None:
        """In the background; asked for while one waits for its turn, that one does."""
        if not self._wanted and self._guest.steady_link is not None:
            self._wanted = True
            self._spawn(self._run())

    async def now(self) -> int:
        """Trim, and return the bytes that the guest gave back. Raises LinkError, MachineError."""
        async with self._turn:
            await self._removals.told(_REMOVALS)
            self._wanted = False
            answer = await self._guest.need_link().call(
                "disk.trim", {"timeout": TRIM_SECONDS}, timeout=TRIM_SECONDS + _GRACE
            )
            given = answer.get("bytes")
            return given if isinstance(given, int) else 0

    async def _run(self) -> None:
        try:
            given = await self.now()
            log.info("the guest gave back %d MB of its disk", given // 1_000_000)
        except (LinkError, MachineError) as error:
            log.warning("the machine's disk is not trimmed: %s", error)
