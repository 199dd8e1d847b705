"""Snapshots of the whole machine: its containers as they run, its disk, its rows of that moment.

What the containers of a snapshot need of the images is held for it, whoever prunes. To go back to
one is the end of this engine's life: the next one begins with the snapshot's rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from wherry.engine import leases
from wherry.engine.model import Container, Json
from wherry.engine.ports import MachinePort, StorePort
from wherry.engine.state import State
from wherry.errors import Conflict, StorageError
from wherry.machine.rewinding import prepare_rewind
from wherry.machine.snapshot import Snapshot, SnapshotShelf, read_suspension
from wherry.paths import Home


class MachineSnapshots:
    """Of one machine.

    Args:
        open_anew: ends this engine's life; the next one begins in the same process.
    """

    def __init__(
        self,
        home: Home,
        machine: MachinePort,
        store: StorePort,
        state: State,
        open_anew: Callable[[], None],
    ) -> None:
        self._name = machine.name
        self._paths = home.machine(machine.name)
        self._machine = machine
        self._store = store
        self._state = state
        self._shelf = SnapshotShelf(self._paths)
        self._open_anew = open_anew
        self._busy = asyncio.Lock()

    async def save(self, name: str) -> Json:
        """Save the machine as it stands; what runs in it runs on. The facts of the snapshot.

        Raises:
            InvalidInput: not a name.
            Conflict: there is one of that name, or this machine cannot be saved as it is.
            MachineError, StorageError: it was not saved.
        """
        async with self._busy:
            draft = await asyncio.to_thread(self._shelf.draft, name)
            containers: list[Container] = []

            def rows(file: Path) -> None:
                self._state.copy_to(file)
                containers.extend(self._state.containers())

            try:
                board = await self._machine.save(draft, rows)
                running = sum(container.running for container in containers) if board else 0
                snapshot = Snapshot(name, draft, time.time_ns(), board, len(containers), running)
                await asyncio.to_thread(self._hold, name, containers)
                snapshot = await asyncio.to_thread(self._shelf.publish, snapshot)
            except BaseException as error:
                await asyncio.to_thread(self._give_up, name)
                if isinstance(error, OSError):
                    raise StorageError(f"the snapshot cannot be written: {error}") from error
                raise
            return await asyncio.to_thread(snapshot.facts)

    async def all(self) -> list[Json]:
        """The facts of each (`Snapshot.facts`), the oldest first."""
        return await asyncio.to_thread(lambda: [it.facts() for it in self._shelf.all()])

    async def remove(self, name: str) -> None:
        """Raises InvalidInput, NotFound, Conflict (the machine is about to go back to it)."""
        async with self._busy:
            await asyncio.to_thread(self._check_unused, name)
            await asyncio.to_thread(self._remove, name)

    async def restore(self, name: str) -> Callable[[], None]:
        """Have the machine be as it was; what has happened since is gone.

        Returns:
            To be called once that was answered: this engine ends then, the next one begins.

        Raises:
            InvalidInput, NotFound, StorageError: nothing has changed.
        """
        async with self._busy:
            snapshot = await asyncio.to_thread(self._shelf.get, name)
            try:
                await asyncio.to_thread(prepare_rewind, self._paths, snapshot)
            except OSError as error:
                raise StorageError(f"the snapshot cannot be copied: {error}") from error
            await self._machine.cut_off()
            return self._open_anew

    def settle(self) -> None:
        """At an engine's start: clear away what was broken off, hold what is there. Blocking."""
        self._shelf.clear_away()
        names = {snapshot.name for snapshot in self._shelf.all()}
        leases.release_snapshots(self._store, self._name, names)

    def _hold(self, name: str, containers: list[Container]) -> None:
        for container in containers:
            holder = leases.snapshot_prefix(self._name, name) + container.id
            self._store.hold_manifest(holder, container.manifest_digest)

    def _give_up(self, name: str) -> None:
        self._shelf.clear_away()
        kept = {snapshot.name for snapshot in self._shelf.all()}
        leases.release_snapshots(self._store, self._name, kept)

    def _remove(self, name: str) -> None:
        self._shelf.remove(name)
        leases.release_snapshots(self._store, self._name, {it.name for it in self._shelf.all()})

    def _check_unused(self, name: str) -> None:
        waiting = read_suspension(self._paths)
        if waiting is not None and waiting.directory == self._paths.snapshots / name:
            raise Conflict(
                f"the machine's next start goes on from snapshot {name!r}",
                hint="wherry machine start, or stop",
            )
