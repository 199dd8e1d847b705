"""Statistics for any number of clients from one sample a second.

Rule: the guest is asked once for all containers that anybody watches, however many clients do; when
nobody does it is not asked at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from wherry.engine.guest import Guest
from wherry.engine.model import Container
from wherry.engine.registry import Registry
from wherry.engine.stats import Sample, read_samples
from wherry.errors import WherryError

INTERVAL = 1.0
"""Seconds between two samples of a stream; Docker's."""


class Sampler:
    """The statistics of one machine's containers."""

    def __init__(self, registry: Registry, guest: Guest) -> None:
        self._registry = registry
        self._guest = guest
        self._watched: dict[str, int] = {}
        self._next: asyncio.Future[dict[str, Sample]] | None = None
        self._task: asyncio.Task[None] | None = None

    async def once(self, container: Container) -> Sample | None:
        """Its figures now; None when it does not run."""
        return (await self._sample([container.id])).get(container.id)

    async def stream(self, ref: str) -> AsyncGenerator[tuple[Container, Sample | None], None]:
        """Its figures now and every second, until it is removed; None while it does not run."""
        entry = self._registry.find(ref)
        container_id = entry.container.id
        self._watched[container_id] = self._watched.get(container_id, 0) + 1
        try:
            yield entry.container, await self.once(entry.container)
            while not entry.gone:
                samples = await asyncio.shield(self._tick())
                yield entry.container, samples.get(container_id)
        finally:
            self._watched[container_id] -= 1
            if not self._watched[container_id]:
                del self._watched[container_id]

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _tick(self) -> asyncio.Future[dict[str, Sample]]:
        """The next sample of all that is watched: one for everybody who waits."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            self._task = asyncio.ensure_future(self._sample_later(self._next))
        return self._next

    async def _sample_later(self, result: asyncio.Future[dict[str, Sample]]) -> None:
        try:
            await asyncio.sleep(INTERVAL)
            self._next = None  # who comes while the guest answers waits for the one after
            result.set_result(await self._sample(list(self._watched)))
        except asyncio.CancelledError:
            result.cancel()
            raise
        except WherryError as error:
            result.set_exception(error)
            result.exception()  # seen, also when nobody waits any more

    async def _sample(self, ids: list[str]) -> dict[str, Sample]:
        entries = [entry for id in ids if (entry := self._registry.get(id)) is not None]
        alive = [entry.container.id for entry in entries if entry.container.alive]
        link = self._guest.link
        if not alive or link is None:
            return {}
        return read_samples(await link.call("container.stats", {"ids": alive, "pressure": True}))
