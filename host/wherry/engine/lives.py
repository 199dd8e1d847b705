"""What goes on in a container while it runs: pausing, other limits, its health, its processes; and
what starts with the machine.

The agent does it all; here are the guards, the rows and the events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from wherry.engine.containers import Containers
from wherry.engine.exits import read_health
from wherry.engine.guest import Guest
from wherry.engine.model import Container, Json, Status
from wherry.engine.policies import starts_with_machine
from wherry.engine.processes import table
from wherry.engine.registry import Entry, Registry
from wherry.engine.spec import resources
from wherry.engine.starting import Starter
from wherry.engine.updates import changes_limits, updated_host_config
from wherry.errors import Conflict, LinkError, NotFound, NotModified, WherryError

log = logging.getLogger(__name__)


class Lives:
    """The lives of one machine's containers. `ref` is an id, a name, or a prefix of an id."""

    def __init__(
        self, registry: Registry, guest: Guest, starter: Starter, containers: Containers
    ) -> None:
        self._registry = registry
        self._guest = guest
        self._starter = starter
        self._containers = containers

    async def pause(self, ref: str) -> None:
        """Stop all its processes where they are. Raises Conflict."""
        entry = self._registry.find(ref)
        async with entry.lock:
            container = _need_process(entry)
            if container.status is Status.PAUSED:
                raise Conflict(f"Container {container.name} is already paused")
            await self._guest.need_link().call("container.pause", {"id": container.id})
            self._registry.paused(entry, True)

    async def unpause(self, ref: str) -> None:
        """Let them go on. Raises Conflict."""
        entry = self._registry.find(ref)
        async with entry.lock:
            if entry.gone or entry.container.status is not Status.PAUSED:
                raise Conflict(f"Container {entry.container.name} is not paused")
            await self._guest.need_link().call("container.unpause", {"id": entry.container.id})
            self._registry.paused(entry, False)

    async def update(self, ref: str, changes: Mapping[str, Any]) -> None:
        """Give it other limits and another restart policy, now when it runs, else at its start.

        Raises:
            InvalidInput, Conflict: a value is wrong; nothing has changed.
            AgentError: the kernel refuses a limit; nothing has changed.
        """
        entry = self._registry.find(ref)
        async with entry.lock:
            if entry.gone:
                raise NotFound(f"No such container: {ref}")
            container = entry.container
            updated = updated_host_config(container.host_config, changes)
            if container.running:
                params: Json = {
                    "id": container.id,
                    "start": self._starter.params(container, updated),
                    "resources": None,
                }
                if container.alive and changes_limits(container.host_config, updated):
                    params["resources"] = resources(updated)
                await self._guest.need_link().call("container.update", params)
            self._registry.updated(entry, updated)

    async def with_fresh_health(self, ref: str) -> Container:
        """The container with the latest results of its health check."""
        entry = self._registry.find(ref)
        container = entry.container
        link = self._guest.steady_link
        if container.health is None or not container.alive or link is None:
            return container
        try:
            answer = await link.call("container.health", {"id": container.id})
            health = read_health(answer.get("health"))
        except LinkError as error:  # what was told last is what is known
            log.warning("the health of %s: %s", container.name, error)
            return container
        if health is None or container.started_ns is None:
            return entry.container
        self._registry.health_changed(entry, container.started_ns, health)
        return entry.container.with_health_log(health)

    async def top(self, ref: str, ps_args: str) -> tuple[list[str], list[list[str]]]:
        """Titles and rows of `ps`. Raises Conflict when it does not run, InvalidInput."""
        container = _need_process(self._registry.find(ref))
        answer = await self._guest.need_link().call("container.top", {"id": container.id})
        return table(answer, ps_args)

    async def start_with_machine(self) -> None:
        """Start what its policy wants to run when the machine has come up, oldest first."""
        wanted = [entry for entry in self._registry if starts_with_machine(entry.container)]
        wanted.sort(key=lambda entry: entry.container.created_ns)
        for entry in wanted:
            try:
                await self._containers.start(entry.container.id)
            except (NotModified, NotFound):
                continue  # somebody was quicker
            except asyncio.CancelledError:
                raise
            except WherryError as error:
                log.error("cannot start %s with the machine: %s", entry.container.name, error)


def _need_process(entry: Entry) -> Container:
    container = entry.container
    if container.status is Status.RESTARTING:
        raise Conflict(
            f"Container {container.id} is restarting, wait until the container is running"
        )
    if entry.gone or not container.alive:
        raise Conflict(f"container {container.id} is not running")
    return container
