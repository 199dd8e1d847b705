"""The image store, from the event loop: its calls in threads, Docker's events, the built-in image.

`localhost/busybox` comes with the VM image, no registry has it: it is imported the first time that
somebody asks for it.
"""

from __future__ import annotations

import asyncio
import fnmatch
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from wherry.engine.background import in_thread
from wherry.engine.events import EventBus
from wherry.engine.model import SHORT_ID, Event
from wherry.engine.ports import MachinePort, Progress, StorePort
from wherry.engine.registry import Registry
from wherry.errors import Conflict, ImageNotFound

if TYPE_CHECKING:
    from wherry.images.names import Removal
    from wherry.images.committing import Commit
    from wherry.images.store import Image

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
    ) -> None:
        self._store = store
        self._machine = machine
        self._registry = registry
        self._events = events
        self._holder_prefix = holder_prefix
        self._builtin = asyncio.Lock()

    def list(self, filters: Mapping[str, Sequence[str]] | None = None) -> Sequence[Image]:
        """Images that meet `reference`, `dangling`, `label`, newest first. Call it in a thread."""
        found = [image for image in self._store.list() if _meets(image, filters or {})]
        return sorted(found, key=lambda image: image.created_ns, reverse=True)

    async def resolve(self, ref: str, platform: str | None = None) -> Image:
        """By name, digest, id or prefix of an id. Raises ImageNotFound."""
        try:
            return await asyncio.to_thread(self._store.resolve, ref, platform=platform)
        except ImageNotFound:
            if ref not in _BUILTIN_NAMES:
                raise
        return await self.ensure_builtin()

    async def pull(
        self,
        ref: str,
        platform: str | None = None,
        auth: Any = None,
        progress: Callable[[Any], None] | None = None,
    ) -> Image:
        """Fetch from its registry. `progress` is called in other threads.

        Raises:
            ImageNotFound, RegistryError, Unauthorized, StorageError
        """
        if ref in _BUILTIN_NAMES:
            return await self.ensure_builtin()
        image = await in_thread(
            self._store.pull,
            ref,
            platform=platform,
            auth=auth,
            progress=progress,
            all_platforms=all_platforms,
        )
        *,
        all_platforms: bool = False,
        self._publish("pull", ref, ref)
        return image

    async def ensure_builtin(self, progress: Progress | None = None) -> Image:
        """The built-in image, imported (and the VM image built) when it is not there."""
        async with self._builtin:
            try:
                return await asyncio.to_thread(self._store.resolve, BUILTIN)
            except ImageNotFound:
                pass
            vm_image = await self._machine.prepare_image(progress)
            return await asyncio.to_thread(self._store.import_layout, vm_image.busybox, BUILTIN)

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
        for removal in removals:
            for kind, value in removal.as_json().items():
                self._publish({"Untagged": "untag"}.get(kind, "delete"), image.id, value)
        return removals

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

    def release_others(self, container_ids: Set[str]) -> None:
        """Give up what is held for other containers of this machine. Call it in a thread."""
        for holder in self._store.holders():
            container_id = holder.removeprefix(self._holder_prefix)
            if container_id != holder and container_id not in container_ids:
                self._store.release(holder)

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


def _meets(image: Image, filters: Mapping[str, Sequence[str]]) -> bool:
    if wanted := filters.get("dangling"):
        dangling = any(value.lower() in ("1", "true") for value in wanted)
        if dangling != (not image.tags):
            return False
    patterns = filters.get("reference")
    if patterns and not any(_matches(image.tags, pattern) for pattern in patterns):
        return False
    labels = image.config.get("Labels") or {}
    return all(_has_label(labels, label) for label in filters.get("label") or ())


def _matches(tags: Iterable[str], pattern: str) -> bool:
    """Docker's `reference` filter: a pattern of a name, with or without its tag."""
    names = {name for tag in tags for name in (tag, tag.rpartition(":")[0])}
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _has_label(labels: Mapping[str, str], wanted: str) -> bool:
    name, separator, value = wanted.partition("=")
    return name in labels and (not separator or labels[name] == value)
