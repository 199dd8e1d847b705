"""What can be done with containers: Docker's operations, each guarded by the container's state.

The guard is the same everywhere: an operation in the wrong state is a Conflict (or NotModified,
when there is nothing to do) and changes nothing. An operation that has begun is finished even when
its client goes away.
"""

from __future__ import annotations

import asyncio
import builtins
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, TypeVar

from wherry.engine import logdrivers, names
from wherry.engine.attach import StreamAttachment, wanted_streams
from wherry.engine.config import checked_host_config, merged_config
from wherry.engine.events import EventBus, container_event
from wherry.engine.filters import SHOW_STOPPED, Filters, container_filter
from wherry.engine.guest import Guest, open_log
from wherry.engine.images import Images
from wherry.engine.logdrivers import check_log_config
from wherry.engine.logs import LogQuery, read_log
from wherry.engine.model import (
    Attachment,
    Container,
    ExitStatus,
    LogFrame,
    Status,
    WaitCondition,
)
from wherry.engine.modes import resolved_modes
from wherry.engine.mounts import wanted_mounts
from wherry.engine.policies import check_restart_policy
from wherry.engine.registry import Entry, Registry
from wherry.engine.signals import SIGKILL, SIGTERM, signal_number
from wherry.engine.spec import check_isolation
from wherry.engine.starting import Starter
from wherry.engine.stopping import Stopper
from wherry.engine.userns import HOST, id_range
from wherry.engine.volumes import VolumeTable
from wherry.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    NotImplementedYet,
    NotModified,
    WherryError,
)

_T = TypeVar("_T")


class Containers:
    """The containers of one machine. `ref` is an id, a name, or a prefix of an id.

    Args:
        userns: the user namespace of containers that say nothing, `host` or `private`.
    """

    def __init__(
        self,
        registry: Registry,
        events: EventBus,
        guest: Guest,
        starter: Starter,
        images: Images,
        volumes: VolumeTable,
        userns: str = HOST,
    ) -> None:
        self._registry = registry
        self._userns = userns
        self._events = events
        self._guest = guest
        self._starter = starter
        self._images = images
        self._volumes = volumes
        self._stopper = Stopper(registry, events, guest)
        self._operations: set[asyncio.Task[Any]] = set()

    @property
    def mapped_by_default(self) -> bool:
        """Whether a container that says nothing has a user namespace."""
        return self._userns != HOST

    async def create(
        self,
        name: str | None,
        config: Mapping[str, Any],
        host_config: Mapping[str, Any],
        platform: str | None = None,
    ) -> Container:
        """Make a container of a local image; nothing is started or pulled.

        Raises:
            ImageNotFound: the image is not in the store.
            Conflict: the name is taken.
            InvalidInput: a value is wrong.
        """
        reference = config.get("Image")
        if not reference:
            raise InvalidInput("config: Image is empty", hint="name the image to run")
        self._registry.free_name(name)
        checked = checked_host_config(host_config)
        check_restart_policy(checked)
        check_log_config(checked)
        check_isolation(config, checked)
        image = await self._images.resolve(reference, platform)
        merged = merged_config(config, image.config)
        container_id = names.new_id()
        await asyncio.to_thread(self._images.hold, container_id, image)
        try:
            # From here to the row nothing awaits: volumes that are found are still there.
            merged, checked = resolved_modes(merged, checked, self.get)
            everybody = (entry.container for entry in self._registry)
            ids = id_range(checked, self._userns, self.get, everybody)
            wanted = wanted_mounts(merged, checked, self.get)
            mounts, volumes = self._volumes.provided(wanted)
            container = Container(
                id=container_id,
                name=self._registry.free_name(name),
                created_ns=time.time_ns(),
                image=reference,
                image_id=image.id,
                manifest_digest=image.manifest_digest,
                config=merged,
                host_config=checked,
                layers=tuple(image.diff_ids),
                platform=str(image.platform),
                mounts=mounts,
                id_range=ids,
            )
            return self._registry.add(container, volumes).container
        except WherryError:
            await asyncio.to_thread(self._images.release, container_id)
            raise

    def get(self, ref: str) -> Container:
        """Raises NotFound; InvalidInput when a prefix fits several."""
        return self._registry.find(ref).container

    def list(
        self, all: bool = False, filters: Filters | None = None, limit: int = 0
    ) -> builtins.list[Container]:
        """Containers, newest first: running ones, unless `all`, `limit` or a filter wants more."""
        filters = filters or {}
        wanted = container_filter(filters, self.get)
        stopped_too = all or limit > 0 or any(filters.get(name) for name in SHOW_STOPPED)
        found = [
            entry.container
            for entry in self._registry
            if (stopped_too or entry.container.running) and wanted(entry.container)
        ]
        found.sort(key=lambda container: container.created_ns, reverse=True)
        return found[:limit] if limit > 0 else found

    async def start(self, ref: str) -> None:
        """Start it. Raises NotModified when it runs, StartFailed when its command cannot be run."""
        await self._finish(self._start(self._registry.find(ref)))

    async def stop(
        self, ref: str, timeout: int | None = None, signal: str | int | None = None
    ) -> None:
        """Ask it to end, and kill it after `timeout` seconds (negative: never).

        Raises:
            NotModified: it does not run.
        """
        entry = self._registry.find(ref)
        wanted = signal or entry.container.config.get("StopSignal")
        number = signal_number(wanted, SIGTERM)
        await self._finish(self._stop(entry, number, timeout))

    async def restart(
        self, ref: str, timeout: int | None = None, signal: str | int | None = None
    ) -> None:
        """Stop it when it runs, as `stop` does, and start it."""
        entry = self._registry.find(ref)
        number = signal_number(signal or entry.container.config.get("StopSignal"), SIGTERM)
        await self._finish(self._restart(entry, number, timeout))

    async def kill(self, ref: str, signal: str | int | None = None) -> None:
        """Send a signal, by default SIGKILL, after which it has ended.

        Raises:
            Conflict: it does not run.
        """
        entry = self._registry.find(ref)
        await self._finish(self._kill(entry, signal_number(signal, SIGKILL)))

    async def remove(self, ref: str, force: bool = False, volumes: bool = False) -> None:
        """Remove it; with `volumes` also its anonymous ones that nobody else uses.

        Raises:
            Conflict: it runs and `force` is not given.
        """
        await self._finish(self._remove(self._registry.find(ref), force, volumes))

    async def rename(self, ref: str, name: str) -> None:
        """Raises Conflict when `name` is taken, InvalidInput when it is none."""
        entry = self._registry.find(ref)
        wanted = names.checked_name(name)
        if wanted == entry.container.name:
            raise InvalidInput("Renaming a container with the same name as its current name")
        self._registry.rename(entry, self._registry.free_name(wanted))

    async def resize(self, ref: str, rows: int, cols: int) -> None:
        """Set its terminal's size. Raises Conflict when it does not run."""
        entry = self._registry.find(ref)
        self._need_running(entry)
        await self._guest.need_link().call(
            "container.resize", {"id": entry.container.id, "rows": rows, "cols": cols}
        )
        self._events.publish_late(
            container_event(entry.container, "resize", height=str(rows), width=str(cols))
        )

    def waiter(
        self, ref: str, condition: str | WaitCondition = WaitCondition.NOT_RUNNING
    ) -> asyncio.Future[ExitStatus]:
        """A future of the exit status, counting from this call.

        Raises:
            InvalidInput: there is no such condition.
        """
        try:
            wanted = WaitCondition(condition or WaitCondition.NOT_RUNNING)
        except ValueError:
            raise InvalidInput(f"invalid condition: {condition!r}") from None
        return self._registry.find(ref).wait(wanted)

    async def attach(
        self,
        ref: str,
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        logs: bool = False,
        stream: bool = True,
    ) -> Attachment:
        """Hold on to its input and output; before its start the attachment waits for it.

        `logs`: what was put out before, too; without `stream` nothing else, and no input.
        """
        entry = self._registry.find(ref)
        _check_attachable(entry.container)
        if logs:
            _check_readable(entry.container)
        attachment = StreamAttachment(
            tty=entry.container.tty,
            streams=wanted_streams(stdout, stderr),
            stdin=stdin and stream and bool(entry.container.config.get("OpenStdin")),
            replay=logs,
            released=entry.drop_attachment,
        )
        entry.add_attachment(attachment)
        try:
            if not stream:
                await self._attach_log(entry, attachment)
            elif entry.container.running:
                await self._starter.attach_running(entry, attachment)
        except BaseException:
            await attachment.aclose()
            raise
        self._events.publish_late(container_event(entry.container, "attach"))
        return attachment

    async def prepare_logs(self, ref: str) -> None:
        """Start a machine that is off and whose disk holds the container's log, so that what is
        wrong is said before an answer has begun. Raises MachineError."""
        if self._registry.find(ref).container.started_ns is not None:
            await self._guest.running_link()

    def logs(
        self,
        ref: str,
        stdout: bool = True,
        stderr: bool = True,
        follow: bool = False,
        since_ns: int | None = None,
        until_ns: int | None = None,
        tail: int | None = None,
    ) -> AsyncIterator[LogFrame]:
        """Its output so far, and on with `follow` while it runs; a machine that is off is started.

        `tail`: the last so many lines; None or negative: all.
        """
        entry = self._registry.find(ref)
        _check_readable(entry.container)
        query = LogQuery(
            wanted_streams(stdout, stderr),
            follow and entry.container.running,
            since_ns or None,
            until_ns or None,
            None if tail is None or tail < 0 else tail,
        )
        return self._logs(entry, query)

    async def close(self) -> None:
        """Give up what is under way (the engine ends; containers run on)."""
        for task in tuple(self._operations):
            task.cancel()
        await asyncio.gather(*self._operations, return_exceptions=True)
        await self._starter.close()

    async def _finish(self, operation: Coroutine[Any, Any, _T]) -> _T:
        """Run it to its end, also when the caller is cancelled."""
        task = asyncio.ensure_future(operation)
        self._operations.add(task)
        task.add_done_callback(self._operation_done)
        return await asyncio.shield(task)

    def _operation_done(self, task: asyncio.Task[Any]) -> None:
        self._operations.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also where no caller is left to be told

    async def _start(self, entry: Entry) -> None:
        async with entry.lock:
            self._need(entry)
            if entry.container.status is Status.PAUSED:
                raise Conflict("cannot start a paused container, try unpause instead")
            if entry.container.running:
                raise NotModified(f"container {entry.container.name} is already running")
            await self._starter.start(entry)

    async def _stop(self, entry: Entry, number: int, timeout: int | None) -> None:
        async with entry.lock:  # a start that is under way comes first
            self._need(entry)
            if not entry.container.running:
                raise NotModified(f"container {entry.container.name} is not running")
        await self._stopper.stop(entry, number, timeout)

    async def _restart(self, entry: Entry, number: int, timeout: int | None) -> None:
        entry.restarting = True
        try:
            try:
                await self._stop(entry, number, timeout)
            except NotModified:
                pass  # it does not run: starting is all
            await self._start(entry)
        finally:
            entry.restarting = False
        self._events.publish(container_event(entry.container, "restart"))

    async def _kill(self, entry: Entry, number: int) -> None:
        self._need_running(entry, "cannot kill container: ")
        await self._stopper.signal(entry, number)

    async def _remove(self, entry: Entry, force: bool, volumes: bool) -> None:
        async with entry.lock:
            self._need(entry)
            if entry.container.running:
                if not force:
                    raise _still_running(entry.container)
                await self._stopper.kill_hard(entry)
            if not entry.gone:  # its end may have removed it
                self._registry.remove(entry, volumes=volumes)

    async def _attach_log(self, entry: Entry, attachment: StreamAttachment) -> None:
        """Bind `attachment` to the log as it is now."""
        container = entry.container
        if not attachment.replay or container.started_ns is None:
            attachment.abandon()
            return
        link = await self._guest.running_link()
        stream, offset = await open_log(link, container.id, "start", follow=False)
        attachment.bind(stream, offset=offset)

    async def _logs(self, entry: Entry, query: LogQuery) -> AsyncIterator[LogFrame]:
        if entry.container.started_ns is None:
            return  # never started: no log, and no reason to start a machine
        async for frame in read_log(self._guest, entry.container.id, query):
            yield frame

    def _need(self, entry: Entry) -> None:
        if entry.gone:
            raise NotFound(f"No such container: {entry.container.name}")

    def _need_running(self, entry: Entry, prefix: str = "") -> None:
        self._need(entry)
        if not entry.container.running:
            raise Conflict(f"{prefix}container {entry.container.id} is not running")


def _still_running(container: Container) -> Conflict:
    """Why it is not removed, in Docker's words."""
    reason = {
        Status.PAUSED: "container is paused and must be unpaused first",
        Status.RESTARTING: "container is restarting: stop the container before removing or force "
        "remove",
    }.get(
        container.status,
        "container is running: stop the container before removing or force remove",
    )
    return Conflict(
        f'cannot remove container "/{container.name}": {reason}',
        hint="stop it first, or use --force",
    )


def _check_attachable(container: Container) -> None:
    if container.status is Status.PAUSED:
        raise Conflict(f"Container {container.name} is paused, unpause the container before attach")
    if container.status is Status.RESTARTING:
        raise Conflict(
            f"Container {container.id} is restarting, wait until the container is running"
        )


def _check_readable(container: Container) -> None:
    if logdrivers.driver(container.host_config) == logdrivers.NONE:
        raise NotImplementedYet("configured logging driver does not support reading")
