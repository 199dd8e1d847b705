"""The image store, from the event loop: its calls in threads, Docker's events, the built-in image.

`localhost/busybox` comes with the VM image, no registry has it: it is imported the first time that
somebody asks for it. For another platform it is made of that one's package.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from wherry.build.builtin import ARCHITECTURES, MADE_BY
from wherry.engine.background import in_thread
from wherry.engine.events import EventBus
from wherry.engine.image_filters import Filters, image_filter
from wherry.engine.model import SHORT_ID, Event
from wherry.engine.ports import MachinePort, Progress, StorePort
from wherry.engine.registry import Registry
from wherry.errors import Conflict, ImageNotFound
from wherry.images.platform import Platform, matches, parse_platform

if TYPE_CHECKING:
    from pathlib import Path

    from wherry.images.committing import Commit
    from wherry.images.names import Removal
    from wherry.images.store import Image

log = logging.getLogger(__name__)

BUILTIN = "localhost/busybox:latest"
_BUILTIN_NAMES = (BUILTIN, "localhost/busybox")


class Images:
    """Images for the API. What is not a coroutine is quick, or says that it wants a thread."""

    def __init__(
        self,
        store: StorePort,
        machine: MachinePort,
        registry: Registry,
        events: EventBus,
        holder_prefix: str,
        native: Platform,
        busybox: Callable[[str], Path],
    ) -> None:
        self._store = store
        self._machine = machine
        self._registry = registry
        self._events = events
        self._holder_prefix = holder_prefix
        self._native = native
        self._busybox = busybox
        self._builtin = asyncio.Lock()

    def list(
        self, filters: Filters | None = None, moment: Callable[[str], int] = int
    ) -> Sequence[Image]:
        """Images that meet `filters` (see `image_filters`), newest first. Call it in a thread."""
        wanted = image_filter(filters or {}, self._store.resolve, moment)
        found = [left for image in self._store.list() if (left := wanted(image)) is not None]
        return sorted(found, key=lambda image: image.created_ns, reverse=True)

    async def resolve(self, ref: str, platform: str | None = None) -> Image:
        """By name, digest, id or prefix of an id. Raises ImageNotFound."""
        if ref in _BUILTIN_NAMES:
            return await self.ensure_builtin(platform=platform)
        return await asyncio.to_thread(self._store.resolve, ref, platform=platform)

    async def resolve_builtin(self, ref: str) -> None:
        """Make the built-in image present when `ref` names it; nothing else is looked for."""
        if ref in _BUILTIN_NAMES:
            await self.resolve(ref)

    async def pull(
        self,
        ref: str,
        platform: str | None = None,
        auth: Any = None,
        progress: Callable[[Any], None] | None = None,
        *,
        all_platforms: bool = False,
    ) -> Image:
        """Fetch from its registry. `progress` is called in other threads.

        Raises:
            ImageNotFound, RegistryError, Unauthorized, StorageError
        """
        if ref in _BUILTIN_NAMES:
            return await self.ensure_builtin(platform=platform)
        image = await in_thread(
            self._store.pull,
            ref,
            platform=platform,
            auth=auth,
            progress=progress,
            all_platforms=all_platforms,
        )
        self._publish("pull", ref, ref)
        return image

    async def ensure_builtin(
        self, progress: Progress | None = None, platform: str | None = None
    ) -> Image:
        """The built-in image, imported (and the VM image built) when it is not there.

        Args:
            platform: None: the machine's own; of machines that share a store each has its own.

        Raises:
            ImageNotFound: there is none for the platform.
        """
        wanted = parse_platform(platform) if platform else self._native
        async with self._builtin:
            try:
                found = await asyncio.to_thread(self._store.resolve, BUILTIN)
            except ImageNotFound:
                found = None
            if found is not None and matches(wanted, found.platform):
                return found
            if found is not None and not self._is_ours(found):
                return await asyncio.to_thread(self._store.resolve, BUILTIN, platform=platform)
            if wanted.architecture == self._native.architecture:
                layout = (await self._machine.prepare_image(progress)).busybox
            elif wanted.architecture in ARCHITECTURES:
                layout = await asyncio.to_thread(self._busybox, wanted.architecture)
            else:
                raise ImageNotFound(
                    f"{BUILTIN} is not there for {wanted}",
                    hint=f"it is made for linux/{', linux/'.join(ARCHITECTURES)}",
                )
            return await asyncio.to_thread(
                self._store.import_layout, layout, BUILTIN, platform=str(wanted)
            )

    def _is_ours(self, image: Image) -> bool:
        """Whether it is a built-in image of some platform, and not one that was given its name."""
        return any(step.created_by.startswith(MADE_BY) for step in self._store.history(image))

    async def tag(self, ref: str, name: str) -> None:
        image = await self.resolve(ref)
        await asyncio.to_thread(self._store.tag, image.id, name)
        self._publish("tag", image.id, name)

    async def remove(self, ref: str, force: bool = False) -> Sequence[Removal]:
        """Remove a name, and the image with its last one.

        Raises:
            ImageNotFound
            Conflict: a running container has it, or a stopped one and `force` is not given (a
                container keeps its layers in any case).
        """
        image = await asyncio.to_thread(self._store.resolve, ref)
        self._check_unused(image, ref, force)
        removals = await asyncio.to_thread(self._store.remove, ref, force=force)
        self.publish_removals(image.id, removals)
        return removals

    def publish_removals(self, image_id: str, removals: Iterable[Removal]) -> None:
        """Docker's events of what went. `image_id`: whose; "": that of each removal."""
        for removal in removals:
            for kind, value in removal.as_json().items():
                action = {"Untagged": "untag"}.get(kind, "delete")
                self._publish(action, image_id or value, value)

    def commit(
        self, parent: Image | None, chunks: Iterator[bytes], new: Commit, name: str | None
    ) -> Image:
        """See `ImageStore.commit`. Call it in a thread."""
        return self._store.commit(parent, chunks, new, name)

    def hold(self, container_id: str, image: Image) -> None:
        """Keep the image's files for a container. Call it in a thread."""
        self._store.hold(self._holder_prefix + container_id, image)

    def release(self, container_id: str) -> None:
        """The container is gone. Call it in a thread."""
        self._store.release(self._holder_prefix + container_id)

    def history(self, image: Image) -> Sequence[Any]:
        return self._store.history(image)

    def _check_unused(self, image: Image, ref: str, force: bool) -> None:
        by_name = not image.id.removeprefix("sha256:").startswith(ref.removeprefix("sha256:"))
        if by_name and len(image.tags) > 1:
            return  # only a name goes
        users = [
            entry.container for entry in self._registry if entry.container.image_id == image.id
        ]
        for user in sorted(users, key=lambda container: not container.running):
            if user.running:
                raise Conflict(
                    f"conflict: unable to delete {ref} (cannot be forced) - image is being used "
                    f"by running container {user.id[:SHORT_ID]}",
                    hint="stop and remove the container first",
                )
            if not force:
                raise Conflict(
                    f"conflict: unable to delete {ref} (must be forced) - image is being used "
                    f"by stopped container {user.id[:SHORT_ID]}",
                    hint="remove the container first, or use --force",
                )

    def _publish(self, action: str, actor: str, name: str) -> None:
        self._events.publish_late(Event("image", action, actor, time.time_ns(), {"name": name}))
