"""Starting a container: layers, spec, the agent's call, and the attachments that wait for its
output.

The path that every `run` waits for: nothing is polled, and one commit says that it runs.
Attachments follow the start call without waiting for its answer; each reads from the offset where
this run's log begins, so the first byte is never missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from wherry.engine.attach import StreamAttachment
from wherry.engine.failure import CONTAINER, SETUP_FAILED, start_failure
from wherry.engine.foreign import Emulation
from wherry.engine.guest import START_TIMEOUT, Guest, log_end, number, open_log
from wherry.engine.model import Container, Json
from wherry.engine.ports import LinkPort, StreamPort
from wherry.engine.registry import Entry, Registry
from wherry.engine.spec import Facts, start_params
from wherry.engine.volumes import VolumeTable
from wherry.errors import AgentError, WherryError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Run:
    """One start. `position` is where its log begins; `started` tells whether it came to run."""

    entry: Entry
    link: LinkPort
    position: int
    started: asyncio.Future[bool]


class Starter:
    """Starts containers of one machine and ties attachments to them."""

    def __init__(
        self,
        registry: Registry,
        guest: Guest,
        facts: Facts,
        volumes: VolumeTable,
        emulation: Emulation,
    ) -> None:
        self._registry = registry
        self._directory: Callable[[str], str] = lambda name: volumes.find(name).directory
        self._guest = guest
        self._emulation = emulation
        self._facts = facts
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, entry: Entry) -> None:
        """Start it; the caller holds the entry's lock and has checked its state.

        Raises:
            StartFailed: the command cannot be run, in Docker's words.
            WherryError: no machine, no layers.
        """
        entry.starting = True
        try:
            await self._start(entry)
        except AgentError as error:
            failure = start_failure(CONTAINER, entry.container.argv[0], error)
            self._registry.start_failed(entry, failure.exit_code, failure.message)
            raise failure from error
        except WherryError as error:
            self._registry.start_failed(entry, SETUP_FAILED, error.message)
            raise
        finally:
            entry.starting = False
            entry.abandon_waiting()

    def params(self, container: Container, host_config: Json) -> Json:
        """What its policy starts it with from now on, with `host_config` in place of its own."""
        updated = replace(container, host_config=host_config)
        return self._params(updated, container.layers)

    async def attach_running(self, entry: Entry, attachment: StreamAttachment) -> None:
        """Bind an attachment to a container that runs."""
        position = "start" if attachment.replay else "now"
        await self._bind(entry, self._guest.need_link(), attachment, position)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start(self, entry: Entry) -> None:
        container = entry.container
        link, layers = await self._guest.prepare(container)
        await self._emulation.ensure(link, container)
        params = self._params(container, layers)
        params["reader_expected"] = any(it.waiting for it in entry.attachments)
        position = container.log_bytes
        if position is None:
            position = await log_end(link, container.id)
        started: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        run = _Run(entry, link, position, started)
        try:
            # These tasks begin at the next suspension, when the start's frame is on its way.
            self._bind_waiting(run)
            result = await link.call("container.start", params, timeout=START_TIMEOUT)
            started_ns, pid = number(result, "started_ns"), number(result, "pid")
        except BaseException:
            started.set_result(False)
            raise
        # A short-lived container's exit may have come first; then it has been recorded as started.
        if not entry.gone and entry.container.started_ns != started_ns:
            self._registry.started(entry, pid=pid, started_ns=started_ns)
        started.set_result(True)
        self._bind_waiting(run)  # those that came meanwhile

    def _params(self, container: Container, layers: Sequence[str]) -> Json:
        params = start_params(container, layers, self._facts, self._directory)
        return {**params, "emulated": self._emulation.is_foreign(container)}

    def _bind_waiting(self, run: _Run) -> None:
        for attachment in tuple(run.entry.attachments):
            if attachment.waiting and not attachment.binding:
                attachment.binding = True
                task = asyncio.ensure_future(self._bind_to_run(run, attachment))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _bind_to_run(self, run: _Run, attachment: StreamAttachment) -> None:
        position = "start" if attachment.replay else run.position
        try:
            try:
                await self._bind(run.entry, run.link, attachment, position)
            except AgentError:  # the start has failed, or the guest saw the attach first
                if await asyncio.shield(run.started):
                    await self._bind(run.entry, run.link, attachment, position)
        except WherryError as error:
            log.warning("cannot attach to %s: %s", run.entry.container.name, error)
        finally:
            attachment.binding = False
            if attachment.waiting:
                attachment.abandon()

    async def _bind(
        self, entry: Entry, link: LinkPort, attachment: StreamAttachment, position: str | int
    ) -> None:
        container_id = entry.container.id
        stream, offset = await open_log(
            link, container_id, position, follow=True, stdin=attachment.stdin
        )

        async def reopen(at: int) -> StreamPort:
            again, _ = await open_log(self._guest.need_link(), container_id, at, follow=True)
            return again

        attachment.bind(stream, offset=offset, reopen=reopen)
