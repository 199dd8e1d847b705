"""The containers of a machine and every change of their state: the one place where rows, events,
waiters and the values in memory change, together.

All methods are synchronous: between two of them the engine sees either all of a change or none of
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from wherry.engine import names
from wherry.engine.attach import StreamAttachment
from wherry.engine.events import EventBus, container_event
from wherry.engine.exits import Exit
from wherry.engine.model import Container, ExitStatus, Json, Status, Volume, WaitCondition
from wherry.engine.policies import probe_command
from wherry.engine.state import State, Transaction
from wherry.engine.stillness import Turns
from wherry.engine.volumes import VolumeTable
from wherry.errors import Conflict


@dataclass(slots=True, eq=False)
class Entry:
    """A container and what the engine holds for it.

    Attributes:
        lock: start and remove exclude each other; exits do not take it.
        starting: the agent was asked to start it and has not answered.
        restarting: AutoRemove waits.
        gone: removed; the entry is in no table any more.
        readers: how many read its files.
        released: set while nobody is attached, or reads its files.
    """

    container: Container
    lock: Turns = field(default_factory=Turns)
    attachments: set[StreamAttachment] = field(default_factory=set)
    waiters: list[tuple[WaitCondition, asyncio.Future[ExitStatus]]] = field(default_factory=list)
    starting: bool = False
    restarting: bool = False
    stopping: bool = False
    gone: bool = False
    readers: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.released.set()

    def add_attachment(self, attachment: StreamAttachment) -> None:
        self.attachments.add(attachment)
        self.released.clear()

    def drop_attachment(self, attachment: StreamAttachment) -> None:
        self.attachments.discard(attachment)
        self._settle()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the guest from deleting its files meanwhile."""
        self.readers += 1
        self.released.clear()
        try:
            yield
        finally:
            self.readers -= 1
            self._settle()

    def _settle(self) -> None:
        if not self.attachments and not self.readers:
            self.released.set()

    def abandon_waiting(self) -> None:
        """Nothing will start: end the attachments that wait for it."""
        for attachment in tuple(self.attachments):
            if attachment.waiting and not attachment.binding:
                attachment.abandon()

    def exit_status(self) -> ExitStatus:
        return ExitStatus(self.container.exit_code or 0, self.container.error)

    def wait(self, condition: WaitCondition) -> asyncio.Future[ExitStatus]:
        """A future of the exit status; done at once when the condition already holds."""
        future = asyncio.get_running_loop().create_future()
        over = condition is WaitCondition.NOT_RUNNING and not self.container.running
        if self.gone or over:
            future.set_result(self.exit_status())
        else:
            waiter = (condition, future)
            self.waiters.append(waiter)
            future.add_done_callback(lambda _future: _discard(self.waiters, waiter))
        return future

    def wake(self, *conditions: WaitCondition) -> None:
        status = self.exit_status()
        for condition, future in tuple(self.waiters):
            if condition in conditions and not future.done():
                future.set_result(status)


def _starting(container: Container) -> Json | None:
    """Its health as a run begins; earlier results stay to be seen."""
    if probe_command(container.config) is None:
        return None
    log = (container.health or {}).get("log", [])
    return {"status": "starting", "failing_streak": 0, "changes": 0, "log": log}


def _discard(items: list[Any], item: Any) -> None:
    if item in items:
        items.remove(item)


class Registry:
    """All containers, by id and name.

    `on_exit(entry)` and `on_removed(entry)` are called after the change is stored.
    """

    def __init__(self, state: State, events: EventBus, volumes: VolumeTable) -> None:
        self._events = events
        self._volumes = volumes
        self._entries: dict[str, Entry] = {}
        self._ids: dict[str, str] = {}
        self.on_exit: Callable[[Entry], None] = lambda _entry: None
        self.on_removed: Callable[[Entry], None] = lambda _entry: None
        for container in state.containers():
            self._put(Entry(container))

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries.values()))

    def get(self, container_id: str) -> Entry | None:
        return self._entries.get(container_id)

    def find(self, ref: str) -> Entry:
        """By id, name or prefix of an id. Raises NotFound, InvalidInput (ambiguous)."""
        return names.find(ref, self._entries, self._ids)

    def free_name(self, wanted: str | None) -> str:
        """`wanted` when it is valid and free, else a random one. Raises InvalidInput, Conflict."""
        if not wanted:
            return names.random_name(self._ids.__contains__)
        name = names.checked_name(wanted)
        if (holder := self._ids.get(name)) is not None:
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use by container '
                f'"{holder}". '
                "You have to remove (or rename) that container to be able to reuse that name.",
                hint="choose another name, or remove that container",
            )
        return name

    def add(self, container: Container, volumes: Iterable[Volume] = ()) -> Entry:
        """`volumes`: those that are made for it."""
        with self._events.transaction() as transaction:
            self._volumes.add_rows(transaction, volumes)
            transaction.add_container(container)
            transaction.add_event(container_event(container, "create"))
        self._volumes.added(volumes)
        entry = Entry(container)
        self._put(entry)
        return entry

    def started(
        self, entry: Entry, *, pid: int | None, started_ns: int, restart_count: int = 0
    ) -> None:
        """It runs: somebody started it, or its policy for the `restart_count`-th time."""
        was = entry.container
        container = replace(
            was,
            status=Status.RUNNING,
            pid=pid,
            started_ns=started_ns,
            finished_ns=None,
            exit_code=0,
            error="",
            oom_killed=False,
            oom_kills=0,
            restart_count=restart_count,
            stopped_by_user=was.stopped_by_user and restart_count > 0,
            health=_starting(was),
        )
        with self._events.transaction() as transaction:
            transaction.update_container(container)
            for event in self._volumes.mount_events(container, "mount"):
                transaction.add_event(event)
            transaction.add_event(container_event(container, "start"))
        entry.container = container

    def exited(self, entry: Entry, exit: Exit) -> None:
        """It has ended; it is removed too when it was created so."""
        was = entry.container
        container = replace(
            was,
            status=Status.RESTARTING if exit.restarting else Status.EXITED,
            pid=None,
            exit_code=exit.code,
            error=exit.error,
            oom_killed=exit.oom or was.oom_killed,
            finished_ns=exit.finished_ns,
            log_bytes=exit.log_bytes,
            restart_count=was.restart_count if exit.restart_count is None else exit.restart_count,
            health=exit.health or was.health,
        )
        remove = container.auto_remove and not entry.restarting and not exit.restarting
        seconds = max(0, exit.finished_ns - (was.started_ns or exit.finished_ns)) // 1_000_000_000
        facts = {"exitCode": str(exit.code), "execDuration": str(seconds)}
        if exit.log_lost:
            facts["logLostBytes"] = str(exit.log_lost)
        die = container_event(container, "die", **facts)
        orphans = self._orphans(entry) if remove else ()
        with self._events.transaction() as transaction:
            transaction.add_event(die)
            for event in self._volumes.mount_events(container, "unmount"):
                transaction.add_event(event)
            if entry.stopping and not exit.restarting:
                transaction.add_event(container_event(container, "stop"))
            if remove:
                self._delete(transaction, container, orphans)
            else:
                transaction.update_container(container)
        entry.container = container
        entry.wake(WaitCondition.NOT_RUNNING, WaitCondition.NEXT_EXIT)
        if not exit.restarting:
            self.on_exit(entry)
        if remove:
            self._forget(entry, orphans)

    def not_restarted(self, entry: Entry, exit: Exit) -> None:
        """It waited to be started again, and will not be: somebody stopped it, or it cannot."""
        container = replace(
            entry.container, status=Status.EXITED, exit_code=exit.code, error=exit.error
        )
        with self._events.transaction() as transaction:
            transaction.update_container(container)
            if entry.stopping:
                transaction.add_event(container_event(container, "stop"))
        entry.container = container
        entry.wake(WaitCondition.NOT_RUNNING, WaitCondition.NEXT_EXIT)
        self.on_exit(entry)

    def paused(self, entry: Entry, paused: bool) -> None:
        """All its processes stand still, or go on."""
        status = Status.PAUSED if paused else Status.RUNNING
        if not entry.container.alive or entry.container.status is status:
            return
        self._change(entry, "pause" if paused else "unpause", status=status)

    def health_changed(self, entry: Entry, started_ns: int, health: Json) -> None:
        """What the agent tells of a run's health; once more is fine."""
        was = entry.container
        known = was.health["changes"] if was.health else 0
        if not was.alive or was.started_ns != started_ns or health["changes"] <= known:
            return
        self._change(entry, f"health_status: {health['status']}", health=health)

    def oom(self, entry: Entry, started_ns: int, kills: int) -> None:
        """Processes of a run were killed for want of memory, `kills` so far."""
        was = entry.container
        if was.started_ns == started_ns and kills > was.oom_kills:
            self._change(entry, "oom", oom_killed=True, oom_kills=kills)

    def updated(self, entry: Entry, host_config: Json) -> None:
        """It has other limits, or another policy."""
        self._change(entry, "update", host_config=host_config)

    def stopped_by_user(self, entry: Entry) -> None:
        """Somebody has signalled it: remembered for its policy."""
        if not entry.container.stopped_by_user:
            self._change(entry, None, stopped_by_user=True)

    def _change(self, entry: Entry, action: str | None, **changes: Any) -> None:
        container = replace(entry.container, **changes)
        with self._events.transaction() as transaction:
            transaction.update_container(container)
            if action is not None:
                transaction.add_event(container_event(container, action))
        entry.container = container

    def start_failed(self, entry: Entry, code: int, error: str) -> None:
        """The process did not start: code and text are kept, the status stays as it was.

        Nothing when its end was told before, and has removed it: the agent was lost in between.
        """
        if entry.gone:
            return
        container = replace(entry.container, exit_code=code, error=error)
        remove = container.auto_remove and not entry.restarting
        orphans = self._orphans(entry) if remove else ()
        with self._events.transaction() as transaction:
            if remove:
                self._delete(transaction, container, orphans)
            else:
                transaction.update_container(container)
        entry.container = container
        self.on_exit(entry)
        if remove:
            # Waiters get the code only: the error is the start's answer, and not a failed wait.
            entry.container = replace(container, error="")
            self._forget(entry, orphans)

    def remove(self, entry: Entry, *, volumes: bool = False) -> None:
        """Forget it; the guest is told in its own time. `volumes`: its anonymous ones go too."""
        container = entry.container
        orphans = self._orphans(entry) if volumes else ()
        with self._events.transaction() as transaction:
            # Also one that never ran: files may have been copied into it.
            self._delete(transaction, container, orphans)
        self._forget(entry, orphans)

    def rename(self, entry: Entry, name: str) -> None:
        container = replace(entry.container, name=name)
        with self._events.transaction() as transaction:
            transaction.update_container(container)
            transaction.add_event(
                container_event(container, "rename", oldName=f"/{entry.container.name}")
            )
        del self._ids[entry.container.name]
        entry.container = container
        self._ids[name] = container.id

    def running(self) -> Iterable[Entry]:
        return [entry for entry in self if entry.container.running]

    def _orphans(self, entry: Entry) -> tuple[Volume, ...]:
        """The anonymous volumes that nobody has when this container is gone."""
        others = (other.container for other in self if other is not entry)
        return self._volumes.orphans(entry.container, others)

    def _delete(
        self,
        transaction: Transaction,
        container: Container,
        volumes: Iterable[Volume],
    ) -> None:
        transaction.delete_container(container.id)
        transaction.add_event(container_event(container, "destroy"))
        self._volumes.drop_rows(transaction, volumes)

    def _put(self, entry: Entry) -> None:
        self._entries[entry.container.id] = entry
        self._ids[entry.container.name] = entry.container.id

    def _forget(self, entry: Entry, volumes: Iterable[Volume]) -> None:
        del self._entries[entry.container.id]
        del self._ids[entry.container.name]
        entry.gone = True
        if not entry.starting:  # else it is the start's to end them
            entry.abandon_waiting()
        entry.wake(*WaitCondition)
        self.on_removed(entry)
        self._volumes.dropped(volumes)
