"""The engine of one machine: its parts put together, and the machine's news led to them.

`Engine.open` is where a new engine meets what an earlier one left: rows, perhaps a running machine
with containers. When it returns, both agree.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from wherry.build.bootstrap import Sources
from wherry.build.builtin import builtin_layout
from wherry.build.emulators import EmulatorSource
from wherry.engine import adopt, facts, leases
from wherry.engine.bootstrapping import Bootstrapper
from wherry.engine.clocks import GuestClock
from wherry.engine.cloning import Cloner
from wherry.engine.containers import Containers
from wherry.engine.copying import Copying
from wherry.engine.distribution import Distribution
from wherry.engine.events import EventBus
from wherry.engine.execs import Execs, exec_exit
from wherry.engine.foreign import Emulation, native_platform
from wherry.engine.guest import Guest
from wherry.engine.idling import Idle
from wherry.engine.images import Images
from wherry.engine.lives import Lives
from wherry.engine.machine_snapshots import MachineSnapshots
from wherry.engine.model import Event, Json
from wherry.engine.ports import AgentEventPort, LinkPort, MachinePort, StorePort
from wherry.engine.presence import Presence
from wherry.engine.registry import Entry, Registry
from wherry.engine.removals import Removals
from wherry.engine.sampler import Sampler
from wherry.engine.sizes import Sizes
from wherry.engine.snapshots import Snapshots
from wherry.engine.spec import Facts
from wherry.engine.starting import Starter
from wherry.engine.state import State
from wherry.engine.trims import Trims
from wherry.engine.upkeep import Upkeep
from wherry.engine.volumes import Volumes, VolumeTable
from wherry.errors import LinkError, StorageError
from wherry.images.store import ImageStore
from wherry.machine import Machine, MachineState, machine_names
from wherry.machine.record import read_record
from wherry.machine.rewinding import finish_rewind
from wherry.machine.timeline import read_starts
from wherry.osutil import is_alive, private_directory
from wherry.osutil.reserve import Reserve
from wherry.paths import Home
from wherry.settings import Settings

log = logging.getLogger(__name__)

GONE_WHILE_AWAY = "the machine stopped while no engine ran"
GONE = "the machine stopped"

_BOOT = "boot"
"""The mark of the boot whose containers were started."""

_EVENTS_PATIENCE = 10.0
"""Seconds that what the agent has told may take to be heard."""

_RESERVE_SECONDS = 60.0

_AGAIN_SECONDS = 2.0
"""Until a change that could not be stored is tried again."""


class Engine:
    """What the API serves.

    Attributes: `containers`, `execs`, `snapshots`, `images`, `events`, `machine`.
    """

    def __init__(
        self,
        home: Home,
        machine_name: str,
        machine: MachinePort,
        store: StorePort,
        state: State,
        settings: Settings,
    ) -> None:
        self.machine = machine
        self.machine_name = machine_name
        self.on_exit_request: Callable[[], None] = lambda: None
        self.on_reopen_request: Callable[[], None] = lambda: None
        self._home = home
        self._store = store
        self._state = state
        self._started_ns = time.time_ns()
        self._guest_facts = facts.GuestFacts()
        self._known_link: LinkPort | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_event = 0
        self._event_handled = asyncio.Event()
        spec_facts = Facts(hostname=machine_name, guest=lambda: self._guest_facts)
        self.events = EventBus(state)
        volumes = VolumeTable(state)
        self._registry = Registry(state, self.events, volumes)
        self.presence = Presence(state, self._registry, machine)
        self.idle = Idle(machine, self._registry, self.presence, settings.idle_stop)
        self._guest = Guest(machine, store)
        native = native_platform(machine)
        emulators = _emulator_source(home, settings, native.architecture)
        self.emulation = Emulation(machine, emulators, lambda: self._guest_facts)
        self.images = Images(
            store,
            machine,
            self._registry,
            self.events,
            leases.holder_prefix(machine_name),
            native,
            lambda architecture: builtin_layout(architecture, home, settings.debian_mirror),
        )
        self.distribution = Distribution(store, self.events)
        self.upkeep = Upkeep(store, self.events, self.images)
        self._removals = Removals(state, self._guest, self.images, volumes)
        self.trims = Trims(self._guest, self._removals, self._spawn)
        self.volumes = Volumes(
            volumes,
            self.events,
            self._guest,
            lambda: (entry.container for entry in self._registry),
        )
        self.copying = Copying(self._registry, self.events, self._guest, volumes)
        starter = Starter(self._registry, self._guest, spec_facts, volumes, self.emulation)
        self.containers = Containers(
            self._registry,
            self.events,
            self._guest,
            starter,
            self.images,
            volumes,
            userns=settings.userns,
        )
        self.lives = Lives(self._registry, self._guest, starter, self.containers)
        self.sampler = Sampler(self._registry, self._guest)
        self.sizes = Sizes(self._guest, store)
        self.snapshots = Snapshots(self._registry, self.events, self._guest, self.images)
        packages = Sources(home.packages, home.image_locks, settings.debian_mirror)
        self.bootstrapper = Bootstrapper(
            self.containers, self.snapshots, self.images, packages, home.ingest
        )
        self.cloner = Cloner(home, machine_name, machine, store, state)
        self.machine_snapshots = MachineSnapshots(home, machine, store, state, self.request_reopen)
        self.execs = Execs(state, self._registry, self.events, self._guest, spec_facts)
        self._registry.on_exit = lambda entry: self._guest.release(entry.container)
        self._registry.on_removed = self._container_removed

    @classmethod
    async def open(
        cls,
        home: Home,
        machine_name: str,
        settings: Settings,
        *,
        machine: MachinePort | None = None,
        store: StorePort | None = None,
        only_reads: bool = False,
    ) -> Engine:
        """Open the state, take over a machine that runs, and agree with it.

        The caller holds the engine lock.

        Args:
            machine, store: instead of the ones that `home` and `settings` give.
            only_reads: nothing can be written: a machine that runs is left alone.

        Raises:
            StorageError: the state cannot be opened.
            MachineError: a machine runs and cannot be taken over.
        """
        paths = home.machine(machine_name)
        if not only_reads:
            private_directory(paths.root)
            await asyncio.to_thread(finish_rewind, paths)
        state = State.open(paths.state_db)
        machine = machine or Machine(machine_name, home, settings)
        engine = cls(
            home,
            machine_name,
            machine,
            store or ImageStore(home, settings, platform=native_platform(machine)),
            state,
            settings,
        )
        try:
            if only_reads:
                engine._look()
            else:
                await engine._adopt()
        except BaseException:
            await engine.aclose()
            raise
        return engine

    async def aclose(self) -> None:
        """Let go of everything; the machine and its containers run on."""
        await self.containers.close()
        await self.sampler.close()
        await self._removals.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.machine.aclose()
        await asyncio.to_thread(self._store.close)
        self.events.close()
        self._state.close()

    def version(self) -> Json:
        return facts.version_facts(self._guest_facts)

    def info(self) -> Json:
        """Reads the image store: call it in a thread."""
        return facts.info_facts(
            self._guest_facts,
            self.machine_name,
            os.fspath(self._home.root),
            [entry.container for entry in self._registry],
            len(self._store.list()),
        )

    def facts(self) -> Json:
        """See `facts.engine_facts`."""
        home = os.fspath(self._home.root)
        return facts.engine_facts(self.machine_name, home, self._started_ns, self._guest_facts)

    def timeline(self) -> list[Json]:
        """The machine's last starts, oldest first (`Start.as_json`). Reads a file."""
        return read_starts(self._home.machine(self.machine_name).timeline)

    async def guest_info(self) -> Json:
        """What the agent says of the machine and of itself. Raises MachineError when it is off."""
        link = self._guest.need_link()
        return await link.call("system.info", {"figures": True})

    async def remove_machine(self, keep_disk: bool) -> None:
        """Stop the machine for good; its files are removed by whoever asked, once this process has
        ended. With `keep_disk` containers and volumes stay, and the images that they need."""
        await self.machine.stop()
        if keep_disk:
            return
        try:
            await asyncio.to_thread(
                leases.release_others, self._store, self.machine_name, frozenset()
            )
            await asyncio.to_thread(
                leases.release_snapshots, self._store, self.machine_name, frozenset()
            )
        except StorageError as error:  # the disk is full: the next engine of any machine does it
            log.warning("images are still held for this machine: %s", error)

    def machine_if_wanted(self) -> None:
        """Start the machine in the background when containers are to run (`Presence.bring_up`)."""
        self._spawn(self.presence.bring_up())

    def request_reopen(self) -> None:
        """Ask that this engine ends, and another one begins with what lies on disk then."""
        self.on_reopen_request()

    def request_exit(self) -> None:
        """Ask the process to end."""
        self.on_exit_request()

    def _look(self) -> None:
        """Instead of taking a machine over: what runs in one that is off has ended."""
        record = read_record(self._home.machine(self.machine_name).qemu_record)
        if record is None or not is_alive(record.identity):
            self._machine_gone(GONE_WHILE_AWAY)

    async def _adopt(self) -> None:
        await asyncio.to_thread(self._settle_leases)
        self.machine.on_link(self._link_changed)
        self.machine.on_state(self._state_changed)
        self.machine.on_pause(self._pause_changed)
        if await self.machine.adopt():
            link = self._guest.need_link()
            if link is not self._known_link:
                self._link_changed(link)
            await asyncio.gather(*self._tasks)
        elif self.machine.paused is None and not self.machine.suspended:
            self._machine_gone(GONE_WHILE_AWAY)
        elif self.machine.suspended and any(self._registry.running()):
            self._spawn(self.presence.go_on())
        self._spawn(_keep_reserves(self._home.root, self._home.machine(self.machine_name).root))
        GuestClock(self.machine, self._spawn).start()
        self._spawn(self.idle.watch())

    def _settle_leases(self) -> None:
        """What is held for this machine's containers is what they need. Reads and writes the store:
        call it in a thread. The next engine does what a full disk refuses."""
        containers = [entry.container for entry in self._registry]
        known = {container.id for container in containers}
        try:
            leases.release_others(self._store, self.machine_name, known)
            leases.hold_missing(self._store, self.machine_name, containers)
            leases.release_gone(self._store, machine_names(self._home))
            self.machine_snapshots.settle()
        except StorageError as error:
            log.warning("images are held as they were: %s", error)

    def _link_changed(self, link: LinkPort) -> None:
        """The machine was reached, for the first time or again."""
        if link is not self._known_link:
            self._known_link = link
            link.on_event(self._agent_event)
        self._spawn(self._agree(link))

    def _state_changed(self, state: MachineState) -> None:
        if state is MachineState.RUNNING:
            self.presence.machine_is_on()
            if not self.machine.continued:  # what was to go on has not
                adopt.machine_gone(self._registry, self.execs, GONE)
        elif state in (MachineState.STOPPED, MachineState.FAILED):
            self._known_link = None
            self._machine_gone(GONE)

    def _machine_gone(self, reason: str) -> None:
        try:
            with self._state.pretending():
                adopt.machine_gone(self._registry, self.execs, reason)
        except StorageError as error:
            log.error("what ran in the machine cannot be noted as ended yet: %s", error)
            self._spawn(self._note_end_of_machine(reason))

    async def _note_end_of_machine(self, reason: str) -> None:
        """Once the disk has room again; a machine that is back has told what runs in it."""
        while self._known_link is None:
            await asyncio.sleep(_AGAIN_SECONDS)
            try:
                if self._known_link is None:
                    adopt.machine_gone(self._registry, self.execs, reason)
                return
            except StorageError as error:
                log.debug("still not: %s", error)

    def _pause_changed(self, reason: str | None) -> None:
        """An event; one of a full disk can only be stored when there is room again."""
        facts = {"name": self.machine_name} | ({"reason": reason} if reason else {})
        action = "pause" if reason else "unpause"
        event = Event("machine", action, self.machine_name, time.time_ns(), facts)
        self.events.publish_late(event)

    async def _agree(self, link: LinkPort) -> None:
        """Bring rows and guest into agreement."""
        try:
            await adopt.reconcile(link, self._registry, self.execs, self._events_up_to)
            for entry in self._registry.running():
                self._guest.pin(entry.container)
            self._removals.resume()
            info = await link.call("system.info", {})
        except LinkError as error:
            log.error("the machine does not tell what runs in it: %s", error)
            return
        self._guest_facts = facts.GuestFacts.from_info(info)
        self._boot_seen(str(info.get("boot_id") or ""))

    def _boot_seen(self, boot_id: str) -> None:
        """Once in a boot: start what starts with the machine."""
        if not boot_id or boot_id == self._state.mark(_BOOT):
            return
        with self._state.transaction() as transaction:
            transaction.set_mark(_BOOT, boot_id)
        self._spawn(self._start_with_machine())

    async def _start_with_machine(self) -> None:
        with self.presence.working("the start of containers with the machine"):
            await self.lives.start_with_machine()

    async def _agent_event(self, event: AgentEventPort) -> None:
        """Store what the agent tells: returning acknowledges it, also what is malformed."""
        try:
            self._apply(event)
        except LinkError as error:
            log.error("event %s: %s", event.name, error)
        self._last_event = event.id
        self._event_handled.set()

    async def _events_up_to(self, event_id: int) -> None:
        """Until the agent's event has been handled; not for ever, should it not come."""
        try:
            async with asyncio.timeout(_EVENTS_PATIENCE):
                while self._last_event < event_id:
                    self._event_handled.clear()
                    await self._event_handled.wait()
        except TimeoutError:
            log.warning("the agent's event %d has not come", event_id)

    def _apply(self, event: AgentEventPort) -> None:
        if event.name == "container.exit":
            adopt.container_exited(self._registry, event.payload)
        elif event.name == "container.started":
            adopt.container_started(self._registry, event.payload)
        elif event.name == "container.health":
            adopt.container_health(self._registry, event.payload)
        elif event.name == "exec.exit":
            self.execs.exited(*exec_exit(event.payload))
        elif event.name == "container.oom":
            adopt.container_oom(self._registry, event.payload)
        else:
            log.warning("the agent sent an event that this engine does not know: %s", event.name)

    def _container_removed(self, entry: Entry) -> None:
        self.execs.forget(entry.container.id)
        self._removals.removed(entry)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task failed", exc_info=error)


async def _keep_reserves(*directories: Path) -> None:
    """They are made beside what an engine does for its first clients, and again when one was needed
    and there is room."""
    while True:
        for directory in directories:
            await asyncio.to_thread(Reserve(directory).fill)
        await asyncio.sleep(_RESERVE_SECONDS)


def _emulator_source(home: Home, settings: Settings, architecture: str) -> EmulatorSource:
    return EmulatorSource(
        architecture, home.packages, home.vm_locks, home.emulators, settings.debian_mirror
    )
