"""A QEMU that an earlier engine left, whose guest waits for room on the host's disk.

It is not taken over before it can go on: its agent could not answer. Until then its machine counts
as one that runs and is paused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from wherry.errors import WherryError
from wherry.machine import pausing
from wherry.machine.background import Background
from wherry.machine.endpoints import forget_sockets
from wherry.machine.pausing import StillPaused
from wherry.machine.record import read_record
from wherry.osutil import terminate
from wherry.paths import MachinePaths

logger = logging.getLogger(__name__)


class LeftPaused:
    """Knows of one, if there is one.

    Args:
        take_over: of what an earlier engine left; returns whether it runs, raises StillPaused.
        over: called when there is nothing to wait for any more.

    Attributes:
        reason: why its guest stands still; None: there is none.
    """

    def __init__(
        self,
        paths: MachinePaths,
        take_over: Callable[[], Awaitable[bool]],
        over: Callable[[], None],
    ) -> None:
        self.reason: str | None = None
        self._paths = paths
        self._take_over = take_over
        self._over = over
        self._settled = asyncio.Event()

    async def adopt(self, background: Background) -> bool:
        """Take over what was left, as soon as it can go on. False: nothing runs, or it cannot."""
        try:
            return await self._take_over()
        except StillPaused as error:
            self.reason = error.reason
            background.spawn(self._watch(), "machine waits for room")
            return False

    async def settle(self) -> None:
        """Return when there is nothing to wait for. Raises StillPaused: there is no room yet."""
        if self.reason is None:
            return
        if not pausing.has_room(self._paths.data_disk):
            raise StillPaused(self.reason)
        await self._settled.wait()

    async def end(self) -> None:
        """End QEMU, as a power cut does: a guest that stands still cannot be asked."""
        if self.reason is None:
            return
        record = await asyncio.to_thread(read_record, self._paths.qemu_record)
        if record is not None:
            await asyncio.to_thread(terminate, record.identity)
        forget_sockets(self._paths)
        self._done()

    async def _watch(self) -> None:
        while self.reason is not None:
            await asyncio.sleep(pausing.LOOK_SECONDS)
            if self.reason is not None and pausing.has_room(self._paths.data_disk):
                await self._try()

    async def _try(self) -> None:
        try:
            await self._take_over()
        except StillPaused:
            return
        except WherryError as error:
            logger.error("the paused machine cannot be taken over: %s", error)
            return
        self._done()

    def _done(self) -> None:
        self.reason = None
        self._settled.set()
        self._over()
