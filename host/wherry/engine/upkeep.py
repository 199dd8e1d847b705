"""Looking after images, and archives of them, for the API: the store's calls in threads, events.

Which images a container of any machine uses is the store's to know: containers hold theirs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from wherry.engine.background import in_thread
from wherry.engine.events import EventBus
from wherry.engine.image_filters import PRUNING, Filters, image_filter, is_true
from wherry.engine.images import Images
from wherry.engine.model import Event
from wherry.engine.ports import StorePort
from wherry.images.saving import DOCKER_ARCHIVE, BlobPart, SavedArchive

if TYPE_CHECKING:
    from wherry.images.comparing import Difference
    from wherry.images.exploring import Exploration
    from wherry.images.loading import Loaded
    from wherry.images.pruning import Pruned
    from wherry.images.store import Image
    from wherry.images.store_db import TagChange
    from wherry.images.usage import Usage
    from wherry.images.verifying import Verified

__all__ = ["DOCKER_ARCHIVE", "BlobPart", "SavedArchive", "Upkeep"]

Report = Callable[[Any], None]


class Upkeep:
    """Errors are those of `wherry.images.upkeep` and `wherry.images.archive_store`."""

    def __init__(self, store: StorePort, events: EventBus, images: Images) -> None:
        self._store = store
        self._events = events
        self._images = images

    # Archives.

    async def save(
        self, refs: Sequence[str], form: str, progress: Report | None = None
    ) -> SavedArchive:
        """An archive of images; close it, or read its pieces (in a thread) to the end."""
        for ref in refs:
            await self._images.resolve_builtin(ref)
        saved: SavedArchive = await in_thread(
            self._store.archives.save, refs, form, progress=progress
        )
        for ref in refs:
            self._publish("save", ref, ref)
        return saved

    async def load(
        self, chunks: Iterator[bytes], platform: str | None, progress: Report | None = None
    ) -> Sequence[Loaded]:
        """Store an archive's images. `chunks` is iterated in a thread."""
        loaded: Sequence[Loaded] = await in_thread(
            self._store.archives.load, chunks, platform, progress=progress
        )
        for image in loaded:
            for name in image.names or (image.id,):
                self._publish("load", image.id, name)
        return loaded

    async def import_rootfs(
        self,
        chunks: Iterator[bytes],
        *,
        name: str | None,
        changes: Sequence[str],
        message: str,
        platform: str | None,
        progress: Report | None = None,
    ) -> Image:
        """An image of a root file system's tar. `chunks` is iterated in a thread."""
        image: Image = await in_thread(
            self._store.archives.import_rootfs,
            chunks,
            name=name,
            changes=changes,
            message=message,
            platform=platform,
            progress=progress,
        )
        self._publish("import", image.id, name or image.id)
        return image

    # Size and pruning.

    async def shared_sizes(self) -> dict[str, int]:
        return dict(await asyncio.to_thread(self._store.upkeep.shared_sizes))

    async def usage(self) -> Usage:
        found: Usage = await asyncio.to_thread(self._store.upkeep.usage)
        return found

    async def prune(self, filters: Filters, moment: Callable[[str], int]) -> Pruned:
        """Remove images that nobody uses: those without a tag, with `dangling=false` all.

        Raises:
            InvalidInput: an unknown filter or value.
        """
        tagged = not is_true(filters, "dangling", True)
        rest = {name: values for name, values in filters.items() if name != "dangling"}
        wanted = image_filter(rest, self._store.resolve, moment, PRUNING)
        images = await asyncio.to_thread(self._store.list)
        pruned: Pruned = await asyncio.to_thread(
            self._store.upkeep.prune, images, lambda it: wanted(it) is not None, tagged=tagged
        )
        self._images.publish_removals("", pruned.removals)
        self._publish("prune", "", "", reclaimed=str(pruned.bytes))
        return pruned

    async def prune_blobs(self) -> Pruned:
        """Give up blobs that can be fetched again."""
        pruned: Pruned = await asyncio.to_thread(self._store.upkeep.prune_blobs)
        return pruned

    # Looking at images.

    async def log(self, name: str) -> Sequence[TagChange]:
        found: Sequence[TagChange] = await asyncio.to_thread(self._store.upkeep.log, name)
        return found

    async def verify(
        self, refs: Sequence[str], *, repair: bool, progress: Report | None = None
    ) -> Verified:
        found: Verified = await in_thread(
            self._store.upkeep.verify, refs, repair=repair, progress=progress
        )
        return found

    async def explore(self, ref: str) -> Exploration:
        await self._images.resolve_builtin(ref)
        found: Exploration = await asyncio.to_thread(self._store.upkeep.explore, ref)
        return found

    async def compare(self, a: str, b: str) -> Sequence[Difference]:
        for ref in (a, b):
            await self._images.resolve_builtin(ref)
        found: Sequence[Difference] = await asyncio.to_thread(self._store.upkeep.compare, a, b)
        return found

    def _publish(self, action: str, actor: str, name: str, **more: str) -> None:
        attributes = {"name": name, **more} if name else more
        self._events.publish_late(Event("image", action, actor, time.time_ns(), attributes))
