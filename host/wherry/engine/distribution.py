"""Registries for the API: push, log in, look, manifest lists. The store's calls, in threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wherry.engine.background import in_thread
from wherry.engine.events import EventBus
from wherry.engine.model import Event
from wherry.engine.ports import StorePort
from wherry.errors import ImageNotFound
from wherry.logins import registry_of

if TYPE_CHECKING:
    from wherry.images.push import Pushed

Auths = Mapping[str, Any]
"""Logins by registry (`docker.io`, `host:port`); those that are missing: the user's own."""


class Distribution:
    """Errors are those of `wherry.images.distribution` and `wherry.images.manifest_lists`."""

    def __init__(self, store: StorePort, events: EventBus) -> None:
        self._store = store
        self._events = events

    async def push(
        self,
        name: str,
        tag: str | None,
        auth: Any = None,
        progress: Callable[[Any], None] | None = None,
        *,
        platform: str | None = None,
        all_platforms: bool = False,
    ) -> Pushed:
        """Push a tag of `name`, or (None) all tags; what the last one names."""
        remote = self._store.distribution
        refs = [f"{name}:{tag}"] if tag else await asyncio.to_thread(remote.tags_of, name)
        if not refs:
            raise ImageNotFound(
                f"An image does not exist locally with the tag: {name}",
                hint="list them: wherry images",
            )
        pushed: Pushed
        for ref in refs:
            pushed = await in_thread(
                remote.push,
                ref,
                auth,
                progress=progress,
                platform=platform,
                all_platforms=all_platforms,
            )
            event = Event("image", "push", ref, time.time_ns(), {"name": ref})
            self._events.publish_late(event)
        return pushed

    async def log_in(self, server: str, auth: Mapping[str, Any]) -> str | None:
        """Check a login; an identity token for the place of the password, if there is one."""
        return await asyncio.to_thread(self._store.distribution.log_in, server, auth)

    async def describe(self, name: str, auth: Any = None) -> Mapping[str, Any]:
        """Docker's DistributionInspect."""
        return await asyncio.to_thread(self._store.distribution.describe, name, auth)

    async def inspect(self, name: str, auths: Auths) -> Sequence[Mapping[str, Any]]:
        """What a registry has under a name: `Distribution.inspect` of the images."""
        remote = self._store.distribution
        return await asyncio.to_thread(remote.inspect, name, _of_name(auths, name))

    async def list_index(self, name: str) -> Mapping[str, Any] | None:
        """The index of a manifest list that is not pushed; None: there is none."""
        return await asyncio.to_thread(self._store.distribution.lists.index, name)

    async def list_entry(self, name: str, source: str) -> Mapping[str, Any]:
        """One manifest of a manifest list: {Ref, Descriptor}."""
        entry = await asyncio.to_thread(self._store.distribution.lists.entry, name, source)
        return {"Ref": entry.source, "Descriptor": entry.descriptor}

    async def list_sources(self, name: str) -> Sequence[str]:
        """The full names of a manifest list's manifests."""
        return await asyncio.to_thread(self._store.distribution.lists.sources, name)

    async def list_create(
        self, name: str, sources: Sequence[str], auths: Auths, *, amend: bool
    ) -> str:
        lists = self._store.distribution.lists
        return await asyncio.to_thread(lists.create, name, sources, auths.get, amend=amend)

    async def list_annotate(self, name: str, source: str, platform: Mapping[str, Any]) -> None:
        lists = self._store.distribution.lists
        await asyncio.to_thread(lists.annotate, name, source, dict(platform))

    async def list_push(self, name: str, auths: Auths, *, purge: bool) -> str:
        """The digest of the index."""
        lists = self._store.distribution.lists
        return await asyncio.to_thread(lists.push, name, auths.get, purge=purge)

    async def list_remove(self, name: str) -> None:
        await asyncio.to_thread(self._store.distribution.lists.remove, name)


def _of_name(auths: Auths, name: str) -> Any:
    return auths.get(registry_of(name))
