"""A container that does not run stays so while its files are copied: whoever starts or removes it
waits for its lock. A copy that stands still meanwhile gives way: its client may never come back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from wherry.engine.ports import StreamPort

PATIENCE = 10.0
"""Seconds that a copy may stand still while somebody waits."""


class Turns(asyncio.Lock):
    """A lock that says whether somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting = 0
        self.wanted = asyncio.Event()

    async def acquire(self) -> Literal[True]:
        self._waiting += 1
        self.wanted.set()
        try:
            return await super().acquire()
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.wanted.clear()


class Hold:
    """A lock that is held until `release`, whoever calls that first."""

    def __init__(self, lock: Turns) -> None:
        self._lock = lock
        self.held = True

    def release(self) -> None:
        if self.held:
            self.held = False
            self._lock.release()

    async def wanted(self) -> None:
        """Returns when somebody waits for it."""
        await self._lock.wanted.wait()

    @property
    def is_wanted(self) -> bool:
        return self._lock.wanted.is_set()


class CountedStream:
    """A stream that counts the pieces that went either way."""

    def __init__(self, stream: StreamPort) -> None:
        self._stream = stream
        self.pieces = 0

    @property
    def id(self) -> int:
        return self._stream.id

    async def read(self, limit: int, /) -> bytes:
        data = await self._stream.read(limit)
        self.pieces += 1
        return data

    async def write(self, data: bytes, /) -> None:
        await self._stream.write(data)
        self.pieces += 1

    async def end(self) -> None:
        await self._stream.end()

    def reset(self, reason: str, /) -> None:
        self._stream.reset(reason)


@asynccontextmanager
async def giving_way(hold: Hold, stream: CountedStream) -> AsyncIterator[None]:
    """While the block copies through `stream`: cut that, and let go, when it stands still."""
    watching = asyncio.ensure_future(_give_way(hold, stream)) if hold.held else None
    try:
        yield
    finally:
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def _give_way(hold: Hold, stream: CountedStream) -> None:
    while True:
        await hold.wanted()
        before = stream.pieces
        await asyncio.sleep(PATIENCE)
        if hold.is_wanted and stream.pieces == before:
            stream.reset(f"the copy stood still for {PATIENCE:.0f} s, and the container was wanted")
            hold.release()
            return
