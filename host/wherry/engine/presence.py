"""What this engine is to others: whether it may give way to a newer one, and whether its machine
should be on when nobody has asked for it.

A machine that somebody stopped stays off. One that ended with its session, or by a power cut, comes
back when the session's manager starts the engine and a container's restart policy wants it.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from wherry.engine.policies import starts_with_machine
from wherry.engine.ports import MachinePort
from wherry.engine.registry import Registry
from wherry.engine.state import State
from wherry.errors import Conflict, StorageError, WherryError
from wherry.machine import MachineState

log = logging.getLogger(__name__)

_OFF = "machine_off"
"""The mark of a machine that was stopped on request."""

_SHOWN = 3


class Presence:
    """Of one engine.

    Attributes:
        activated: its socket is held by the session's manager, which starts the next engine.
    """

    def __init__(self, state: State, registry: Registry, machine: MachinePort) -> None:
        self.activated = False
        self._state = state
        self._registry = registry
        self._machine = machine
        self._work: Counter[str] = Counter()

    @property
    def work(self) -> Collection[str]:
        """What goes on."""
        return self._work.keys()

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """`what` goes on while the block runs."""
        self._work[what] += 1
        try:
            yield
        finally:
            self._work[what] -= 1
            if not self._work[what]:
                del self._work[what]

    def give_way(self, own: str, python: str) -> None:
        """Return when the process may end for another engine to take its place.

        Args:
            own: the asking request, as `working` knows it. python: what would run the next engine.

        Raises:
            Conflict: something goes on that would be cut off, or the next engine would be as old.
        """
        if self.activated and python != sys.executable:
            raise Conflict(
                f"the engine's service runs {sys.executable}",
                hint="wherry service install has it run the Wherry that you call",
            )
        going_on = [what for what in self._work if what != own]
        if self._machine.state in (MachineState.STARTING, MachineState.STOPPING):
            going_on.append(f"the machine is {self._machine.state.value}")
        if going_on:
            more = f" and {len(going_on) - _SHOWN} more" if len(going_on) > _SHOWN else ""
            raise Conflict(
                f"the engine is in the middle of {', '.join(going_on[:_SHOWN])}{more}",
                hint="wherry service restart --force cuts that off",
            )

    def machine_stopped_on_request(self) -> None:
        """It stays off until somebody needs it."""
        self._note_off("asked")

    def machine_is_on(self) -> None:
        if self._state.mark(_OFF):
            self._note_off("")

    def _note_off(self, value: str) -> None:
        """A full disk keeps no machine from being stopped: it is what may make room."""
        try:
            with self._state.transaction() as transaction:
                transaction.set_mark(_OFF, value)
        except StorageError as error:
            log.warning("whether the machine was stopped on request is not noted: %s", error)

    async def bring_up(self) -> None:
        """Start the machine when containers are to run and it was not stopped on request. What
        starts with the machine starts then, as at every boot."""
        wanted = [entry for entry in self._registry if starts_with_machine(entry.container)]
        if not wanted or self._state.mark(_OFF) or self._machine.state is MachineState.RUNNING:
            return
        log.info("starting the machine for %s", ", ".join(it.container.name for it in wanted))
        try:
            with self.working("the start of the machine"):
                await self._machine.ensure_running()
        except WherryError as error:
            log.error("cannot start the machine for its containers: %s", error)

    async def go_on(self) -> None:
        """Start the machine whose containers stand still in its snapshot."""
        try:
            await self._machine.ensure_running()
        except WherryError as error:
            log.error("the machine does not go on: %s", error)
