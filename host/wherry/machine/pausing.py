"""A guest that is paused is not dead: why it is, and what lets it go on.

QEMU pauses a guest whose write finds the host's disk full (`werror=enospc`, the default): nothing
is lost, and it goes on as soon as there is room. Somebody may also pause it through QMP; then the
next command that needs it lets it go on.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from wherry.errors import MachineError
from wherry.machine.qmp import Qmp

logger = logging.getLogger(__name__)

BY_HAND = "it was paused through QMP"
DISK_FULL = "the host's disk is full"

ROOM = 64 << 20
"""Free bytes with which a guest goes on: with less it would stand still again at once."""

LOOK_SECONDS = 2.0
_HINT = "make room, also with: wherry system prune; it goes on by itself then"


class StillPaused(MachineError):
    """A guest that is needed stands still."""

    def __init__(self, reason: str) -> None:
        hint = _HINT if reason == DISK_FULL else "wherry machine start lets it go on"
        super().__init__(f"the machine is paused: {reason}", hint=hint)
        self.reason = reason


class Pauses:
    """Knows whether a guest is paused; lives as long as its QEMU.

    Args:
        disk: the file that the guest writes to.
        spawn: runs work in the background until the machine is let go.
        notice: told what the user should read.
        changed: told each new `reason`.

    Attributes:
        reason: why the guest stands still; None while it runs.
    """

    def __init__(
        self,
        qmp: Qmp,
        disk: Path,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
        notice: Callable[[str], None],
        changed: Callable[[str | None], None],
    ) -> None:
        self.reason: str | None = None
        self._qmp = qmp
        self._disk = disk
        self._spawn = spawn
        self._notice = notice
        self._changed = changed
        self._io_error: str | None = None
        self._free = asyncio.Event()
        self._free.set()
        qmp.on_event(self._event)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """The caller stops the guest and lets it go on: that is no pause, and nobody else does.

        Raises:
            StillPaused: it stands still already.
        """
        if self.reason is not None:
            raise StillPaused(self.reason)
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()

    async def go_on(self) -> None:
        """Let a paused guest go on; nothing happens to one that runs.

        Raises:
            StillPaused: the host's disk is full.
            MachineError: QEMU refuses.
        """
        await self._free.wait()
        if self.reason is None:
            return
        if self.reason == DISK_FULL and not has_room(self._disk):
            raise StillPaused(DISK_FULL)
        logger.info("the machine was paused (%s): letting it go on", self.reason)
        await self._qmp.execute("cont")
        self._set(None)

    def _event(self, name: str, data: Mapping[str, Any]) -> None:
        """qapi/block-core.json BLOCK_IO_ERROR comes before the STOP that it is the reason of."""
        if name == "BLOCK_IO_ERROR" and data.get("action") == "stop":
            said = str(data.get("reason") or "a write failed")
            self._io_error = DISK_FULL if data.get("nospace") else f"its disk failed: {said}"
        elif name == "STOP" and self._free.is_set():
            self._set(self._io_error or BY_HAND)
            self._notice(f"the machine is paused: {self.reason}")
            if self._io_error == DISK_FULL:
                self._spawn(self._until_there_is_room(), "machine waits for room")
            self._io_error = None
        elif name == "RESUME":
            self._set(None)

    def _set(self, reason: str | None) -> None:
        if reason != self.reason:
            self.reason = reason
            self._changed(reason)

    async def _until_there_is_room(self) -> None:
        while self.reason == DISK_FULL and not self._qmp.closed:
            if has_room(self._disk):
                try:
                    await self.go_on()
                except MachineError as error:
                    logger.warning("the paused machine does not go on: %s", error)
                return
            await asyncio.sleep(LOOK_SECONDS)


def has_room(disk: Path) -> bool:
    """Whether the guest can write again for a while."""
    return shutil.disk_usage(disk.parent).free >= ROOM
