"""Telling the guest which containers and volumes are gone.

A removal is complete for everybody once its row is deleted; what the guest keeps of the container
or the volume is noted in the same transaction and removed when nobody reads its output any more. A
machine is never started for that: what waits is done at its next start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from wherry.engine.guest import Guest
from wherry.engine.images import Images
from wherry.engine.model import SHORT_ID
from wherry.engine.registry import Entry
from wherry.engine.state import State
from wherry.engine.volumes import VolumeTable
from wherry.errors import WherryError

log = logging.getLogger(__name__)


class Removals:
    """The removals that the guest still has to make."""

    def __init__(self, state: State, guest: Guest, images: Images, volumes: VolumeTable) -> None:
        self._state = state
        self._volumes = volumes
        volumes.on_dropped = lambda volume: self._schedule_volume(volume.directory)
        self._images = images
        self._guest = guest
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def removed(self, entry: Entry) -> None:
        """A container's row is gone; `entry` still knows who reads its output."""
        self._schedule(entry.container.id, entry.released)

    def resume(self) -> None:
        """The machine is up: do what waits."""
        for container_id in self._state.removals():
            self._schedule(container_id, None)
        for directory in self._state.volume_removals():
            self._schedule_volume(directory)

    async def told(self, seconds: float) -> None:
        """Wait, not longer than that, until the guest knows of all that is gone."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks.values()), timeout=seconds)

    async def close(self) -> None:
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _schedule(self, container_id: str, released: asyncio.Event | None) -> None:
        self._begin(container_id, lambda: self._remove(container_id, released))

    def _schedule_volume(self, directory: str) -> None:
        self._begin(f"volume:{directory}", lambda: self._remove_volume(directory))

    def _begin(self, key: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if key not in self._tasks:
            task = asyncio.ensure_future(work())
            self._tasks[key] = task
            task.add_done_callback(lambda _task: self._tasks.pop(key, None))

    async def _remove_volume(self, directory: str) -> None:
        link = self._guest.steady_link
        if link is None:
            return  # as in `_remove`
        try:
            await link.call("volume.remove", {"name": directory})
            with self._state.transaction() as transaction:
                transaction.delete_volume_removal(directory)
        except WherryError as error:
            log.warning("volume %s is not removed yet: %s", directory, error)
            return
        self._volumes.left(directory)

    async def _remove(self, container_id: str, released: asyncio.Event | None) -> None:
        if released is not None:
            await released.wait()
        try:
            await asyncio.to_thread(self._images.release, container_id)
            link = self._guest.steady_link
            if link is None:
                return  # `resume` comes with the next one
            await link.call("container.remove", {"id": container_id})
            with self._state.transaction() as transaction:
                transaction.delete_removal(container_id)
        except WherryError as error:  # its row in `removals` is still there: it is tried again
            log.warning("container %s is not removed yet: %s", container_id[:SHORT_ID], error)
