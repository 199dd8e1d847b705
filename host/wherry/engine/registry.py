"""The containers of a machine and every change of their state: the one place where rows, events,
waiters and the values in memory change, together.

All methods are synchronous: between two of them the engine sees either all of a change or none of
it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from wherry.engine import names
from wherry.engine.attach import StreamAttachment
from wherry.engine.events import EventBus, container_event
from wherry.engine.model import Container, ExitStatus, Status, Volume, WaitCondition
from wherry.engine.state import State, Transaction
from wherry.engine.volumes import VolumeTable
from wherry.errors import Conflict, LinkError

LOST_CODE = 137
"""Exit code of a container whose machine went away: as if it had got SIGKILL."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended. `log_bytes` None: unknown; `started_ns` None: of the present run."""

    code: int
    finished_ns: int
    started_ns: int | None = None
    log_bytes: int | None = None
    oom: bool = False
    error: str = ""

    @classmethod
    def lost(cls, error: str) -> Exit:
        """The machine went away."""
        return cls(LOST_CODE, time.time_ns(), error=error)

    @classmethod
    def from_payload(cls, payload: Any) -> Exit:
        """The payload of `container.exit`. Raises LinkError when the guest sent something else."""
        if not isinstance(payload, Mapping):
            raise LinkError("the guest sent an exit that is none")
        return cls(
            code=_count(payload, "exit_code"),
            finished_ns=_count(payload, "finished_ns"),
            started_ns=_count(payload, "started_ns"),
            log_bytes=_count(payload, "log_bytes"),
            oom=payload.get("oom") is True,
        )


def _count(payload: Mapping[str, Any], name: str) -> int:
    value = payload.get(name)
    if not isinstance(value, int) or value < 0:
        raise LinkError(f"the guest sent an exit without a valid {name}")
    return value


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
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
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

    def started(self, entry: Entry, *, pid: int | None, started_ns: int) -> None:
        """It runs."""
        container = replace(
            entry.container,
            status=Status.RUNNING,
            pid=pid,
            started_ns=started_ns,
            finished_ns=None,
            exit_code=0,
            error="",
            oom_killed=False,
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
            status=Status.EXITED,
            pid=None,
            exit_code=exit.code,
            error=exit.error,
            oom_killed=exit.oom,
            finished_ns=exit.finished_ns,
            log_bytes=exit.log_bytes,
        )
        remove = container.auto_remove and not entry.restarting
        seconds = max(0, exit.finished_ns - (was.started_ns or exit.finished_ns)) // 1_000_000_000
        die = container_event(container, "die", exitCode=str(exit.code), execDuration=str(seconds))
        orphans = self._orphans(entry) if remove else ()
        with self._events.transaction() as transaction:
            transaction.add_event(die)
            for event in self._volumes.mount_events(container, "unmount"):
                transaction.add_event(event)
            if entry.stopping:
                transaction.add_event(container_event(container, "stop"))
            if remove:
                self._delete(transaction, container, orphans, in_guest=True)
            else:
                transaction.update_container(container)
        entry.container = container
        entry.wake(WaitCondition.NOT_RUNNING, WaitCondition.NEXT_EXIT)
        self.on_exit(entry)
        if remove:
            self._forget(entry, orphans)

    def start_failed(self, entry: Entry, code: int, error: str) -> None:
        """The process did not start: code and text are kept, the status stays as it was."""
        container = replace(entry.container, exit_code=code, error=error)
        remove = container.auto_remove and not entry.restarting
        orphans = self._orphans(entry) if remove else ()
        with self._events.transaction() as transaction:
            if remove:
                self._delete(transaction, container, orphans, in_guest=True)
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
            in_guest = container.exit_code is not None
            self._delete(transaction, container, orphans, in_guest=in_guest)
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
        *,
        in_guest: bool,
    ) -> None:
        transaction.delete_container(container.id, in_guest=in_guest)
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
