"""A machine copied: its data disk, its containers and volumes; not its identity.

The copy comes into being by one rename of a directory. What else a machine's directory holds (its
identity, logs, sockets) is made anew when the copy starts.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from wherry.engine import leases
from wherry.engine.ports import MachinePort, Progress, StorePort
from wherry.engine.state import State
from wherry.errors import Conflict, StorageError
from wherry.machine import MachineConfig
from wherry.osutil import fsync_directory, private_directory
from wherry.osutil.sparse import copy_sparse
from wherry.paths import Home, MachinePaths, new_machine_directory


class Cloner:
    """Copies this engine's machine."""

    def __init__(
        self, home: Home, name: str, machine: MachinePort, store: StorePort, state: State
    ) -> None:
        self._home = home
        self._name = name
        self._machine = machine
        self._store = store
        self._state = state

    async def clone(self, name: str, progress: Progress) -> None:
        """Make a machine `name` that has what this one has. progress(`copy`, bytes, of how many).

        Raises:
            InvalidInput: not a name.
            Conflict: this machine runs, or there is one of that name.
            StorageError: the disk is full.
        """
        target = self._home.machine(name)
        if target.root.exists():
            raise Conflict(f"there is a machine {name!r} already")
        loop = asyncio.get_running_loop()

        def report(done: int, total: int) -> None:
            loop.call_soon_threadsafe(progress, "copy", done, total)

        source = self._home.machine(self._name)
        async with self._machine.held("is being cloned"):
            work = new_machine_directory(target.root)
            config = self._machine.config
            try:
                await asyncio.to_thread(_prepare, work)
                self._state.copy_to(work / target.state_db.name)
                await asyncio.to_thread(_fill, work, source, config, report)
                containers = self._state.containers()
                await asyncio.to_thread(leases.hold_missing, self._store, name, containers)
                await asyncio.to_thread(_publish, work, target)
            except BaseException:
                await asyncio.to_thread(shutil.rmtree, work, True)
                raise


def _prepare(work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)  # of an attempt that was broken off
    private_directory(work)


def _fill(
    work: Path, source: MachinePaths, config: MachineConfig, report: Callable[[int, int], None]
) -> None:
    (work / source.config.name).write_text(
        json.dumps(asdict(config), indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    if source.data_disk.exists():
        copy_sparse(source.data_disk, work / source.data_disk.name, report)
    fsync_directory(work)


def _publish(work: Path, target: MachinePaths) -> None:
    try:
        work.rename(target.root)
    except OSError as error:
        if target.root.exists():
            raise Conflict(f"there is a machine {target.root.name!r} already") from error
        raise StorageError(f"cannot make {target.root}: {error.strerror}") from error
    fsync_directory(target.root.parent)
