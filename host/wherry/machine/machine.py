"""A machine: one VM, its states, and everything that the engine asks of it.

    stopped -> starting -> running -> stopping -> stopped
                    \\-> failed <-/                (failed and stopped: there is no QEMU)

Lives on one asyncio loop. QEMU outlives it: `aclose` lets go, `adopt` of a later one takes over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from wherry.errors import Conflict, MachineError, WherryError
from wherry.machine.background import Background, in_loop, tell
from wherry.machine.boot import Progress, RunningQemu
from wherry.machine.bringup import Bringup, Tools
from wherry.machine.capturing import save_disk, save_running
from wherry.machine.changing import Change, Configuration
from wherry.machine.config import MachineConfig, prepare_directories, write_config
from wherry.machine.console import tail_of
from wherry.machine.ending import cut, powered_off, put_aside
from wherry.machine.epitaph import end_of_guest
from wherry.machine.growing import apply_at_once
from wherry.machine.guest import LinkPort
from wherry.machine.image import upgrade_image
from wherry.machine.inspecting import configuration_facts, running_facts
from wherry.machine.layers import LayerDisk, LayerPool
from wherry.machine.left import LeftPaused
from wherry.machine.pausing import Pauses
from wherry.machine.snapshot import Board, abandon, read_suspension
from wherry.machine.ssh import SshAccess
from wherry.machine.states import ALLOWED, MachineState, Running
from wherry.machine.timeline import Recorder
from wherry.machine.transports import Transports
from wherry.machine.vsock import forget_vsock
from wherry.paths import Home
from wherry.settings import Settings
from wherry_image import VmImage

logger = logging.getLogger(__name__)

GRACE_SECONDS = 10.0
"""What containers get between SIGTERM and SIGKILL when the machine stops, as Docker's default."""

_T = TypeVar("_T")


class Machine:
    """One machine of a user.

    Args:
        name: of the machine.
        tools: replaced by tests.
    """

    def __init__(
        self, name: str, home: Home, settings: Settings, *, tools: Tools | None = None
    ) -> None:
        self.name = name
        self.notices: list[str] = []
        self.timeline = Recorder()
        self._home = home
        self._paths = home.machine(name)
        self._settings = settings
        self._tools = tools or Tools()
        self._state = MachineState.STOPPED
        self._reason: str | None = None
        self._running: Running | None = None
        self._starting: asyncio.Task[LinkPort] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._baking: asyncio.Task[None] | None = None
        self._background = Background()
        self._pins: dict[str, frozenset[str]] = {}
        self._progress: list[Progress] = []
        self.ssh = SshAccess(name, home, settings, lambda: self.config.arch)
        self._transports = Transports(self._paths, self.ssh, self._notice)
        self._bringup = Bringup(
            name=name,
            home=home,
            paths=self._paths,
            settings=settings,
            tools=self._tools,
            report=self._report,
            notice=self._notice,
            transports=self._transports,
        )
        self._configuration = Configuration(
            home, self._paths, settings, self._tools.find_qemu, self._tools.choose_accel
        )
        self._held: str | None = None
        self._left = LeftPaused(self._paths, self._take_over, self._left_is_over)
        self._link_callbacks: list[Callable[[Any], object]] = []
        self._state_callbacks: list[Callable[[MachineState], object]] = []
        self._pause_callbacks: list[Callable[[str | None], object]] = []

    @property
    def state(self) -> MachineState:
        return MachineState.RUNNING if self._left.reason else self._state

    @property
    def link(self) -> LinkPort | None:
        """The link to the agent; None unless the machine runs."""
        return self._running.link if self._running else None

    @property
    def paused(self) -> str | None:
        """Why the guest stands still; None while it runs, and when it is off."""
        return self._running.pauses.reason if self._running else self._left.reason

    @property
    def config(self) -> MachineConfig:
        """Stored, or the defaults while the machine has never been started.

        `settings.accel` (the environment) wins over the stored accelerator.
        """
        stored = self._configuration.stored()
        if self._settings.accel != "auto":
            return replace(stored, accel=self._settings.accel)
        return stored

    async def create(self, values: Change, disk_from: str | None = None) -> None:
        """Write the configuration of this machine, which has none. See `Configuration.create`."""
        await asyncio.to_thread(self._configuration.create, values, disk_from)

    async def change(self, values: Change) -> None:
        """Change the configuration: the disk grows at once, all else counts from the next start on.

        Raises:
            InvalidInput, QemuNotFound, MachineError: a value is wrong; nothing has changed.
        """
        config = await asyncio.to_thread(self._configuration.change, values)
        if (running := self._running) is not None and self._ending is None:
            running.vm.record = await apply_at_once(
                running.vm, running.link, config, self._paths.qemu_record
            )

    @asynccontextmanager
    async def held(self, doing: str) -> AsyncIterator[None]:
        """The machine is off and stays off. Args: doing: `is being cloned`. Raises Conflict."""
        if self.state not in (MachineState.STOPPED, MachineState.FAILED) or self._held:
            why = self._held or f"is {self.state.value}"
            raise Conflict(f"machine {self.name!r} {why}", hint=f"wherry machine stop {self.name}")
        self._held = doing
        try:
            yield
        finally:
            self._held = None

    def on_link(self, callback: Callable[[Any], object]) -> None:
        """Call `callback(link)` whenever the agent has been reached, also again."""
        self._link_callbacks.append(callback)

    def on_state(self, callback: Callable[[MachineState], object]) -> None:
        """Call `callback(state)` after every change."""
        self._state_callbacks.append(callback)

    def on_pause(self, callback: Callable[[str | None], object]) -> None:
        """Call `callback(reason)` when the guest stands still, with None when it goes on."""
        self._pause_callbacks.append(callback)

    async def adopt(self) -> bool:
        """Take over the VM that an earlier engine left running; to be called once, at first.

        Returns:
            Whether it runs and its agent answers. Whatever does not is ended, but for one that
            waits for room on the host's disk (`paused`): it is taken over when there is some.
        """
        prepare_directories(self._home, self._paths)
        adopted = await self._left.adopt(self._background)
        if self._left.reason is not None:
            tell(self._pause_callbacks, self._left.reason)
        return adopted

    def _left_is_over(self) -> None:
        tell(self._pause_callbacks, None)
        if self._running is None:
            self._forget_record()
            tell(self._state_callbacks, self._state)

    async def _take_over(self) -> bool:
        found = await self._bringup.adopt()
        if found is None:
            self._forget_record()
            return False
        running = self._assemble(*found)
        try:
            await self._take_up_layers(running)
        except WherryError as error:
            logger.error("the running machine cannot be taken over, it is ended: %s", error)
            self._forget_record()
            return False
        self._enter(running)
        return True

    async def ensure_running(
        self, progress: Progress | None = None, *, template: bool = True
    ) -> LinkPort:
        """The link of the running machine; started when it is off. Concurrent callers start one.

        A caller that is cancelled does not stop the start that others (or later ones) wait for.

        Args:
            template: restore a saved machine when there is a good one.

        Raises:
            QemuNotFound, ImageBuildError, BootFailed, MachineError: it cannot be started.
        """
        if progress is not None:
            self._progress.append(progress)
        try:
            await self._left.settle()
            while self._running is None or self._ending is not None:
                if self._held is not None:
                    raise Conflict(f"machine {self.name!r} {self._held}", hint="try again later")
                if self._ending is not None:
                    await asyncio.shield(self._ending)
                    continue
                if self._starting is None:
                    self._starting = self._background.spawn(self._start(template), "machine start")
                await asyncio.shield(self._starting)
            await self._running.pauses.go_on()
            return self._running.link
        finally:
            if progress is not None:
                self._progress.remove(progress)

    async def until_template(self) -> None:
        """Wait until the template that follows a boot is made, or is known not to be possible."""
        if self._baking is not None:
            await asyncio.wait({self._baking})

    async def save_template(self) -> dict[str, Any]:
        """Have a template for the next start now, at the usual priority; see `Templates.all`.

        Raises:
            WherryError: it cannot be made.
        """
        if self._baking is not None:
            self._baking.cancel()
            await asyncio.wait({self._baking})
        image = await self.prepare_image()
        return await self._bringup.save_template(self.config, image)

    async def prepare_image(self, progress: Progress | None = None) -> VmImage:
        """The VM image, built when it is missing. Starts nothing.

        Raises:
            ImageBuildError: it cannot be built.
        """
        prepare, report = self._tools.prepare_image, in_loop(progress)
        image = await asyncio.to_thread(prepare, self.config, self._home, self._settings, report)
        for notice in image.notices:
            self._notice(notice)
        return image

    async def upgrade(self, progress: Progress | None = None) -> list[dict[str, str]]:
        """Take the newest signed packages for the next start.

        Returns:
            {name, old, new} of each package that changed.
        """
        report = in_loop(progress)
        return await asyncio.to_thread(
            upgrade_image, self.config, self._home, self._settings, report
        )

    async def attach_layers(self, layers: Sequence[LayerDisk]) -> None:
        """Have the layers mounted in the guest. Pin them first, else they may be unplugged again.

        Raises:
            MachineError: the machine does not run, or a layer cannot be plugged or mounted.
        """
        await self._need_running().layers.attach(layers)
        self._trim_soon()

    async def trim_layers(self, keep: int = 0) -> None:
        """Unplug layers that nobody holds, least recently used first, until `keep` are left.

        Raises:
            LinkError, MachineError: as the calls that failed.
        """
        await self._need_running().layers.trim(keep)

    @property
    def attached_layers(self) -> dict[str, int]:
        """diffID to LUN of what is mounted in the guest; empty when the machine is off."""
        return self._running.layers.attached if self._running else {}

    def pin_layers(self, holder: str, diff_ids: Iterable[str]) -> None:
        """`holder` needs exactly these layers until `unpin_layers`."""
        self._pins[holder] = frozenset(diff_ids)

    def unpin_layers(self, holder: str) -> None:
        """Unknown holders are fine."""
        if self._pins.pop(holder, None):
            self._trim_soon()

    async def stop(self, grace: float = GRACE_SECONDS) -> None:
        """Shut the guest down and wait until QEMU is gone. Does nothing when it is off.

        Args:
            grace: seconds for the guest's processes between SIGTERM and SIGKILL.
        """
        await self._break_off_start()
        await self._left.end()
        if self.suspended:
            await asyncio.to_thread(abandon, self._paths)
            tell(self._state_callbacks, self._state)
        if self._ending is None and self._running is not None:
            self._ending = self._background.spawn(
                self._shut_down(self._running, grace), "machine stop"
            )
        if self._ending is not None:
            await asyncio.shield(self._ending)

    @property
    def continued(self) -> bool:
        """Whether its guest ran before: what ran in it then runs now."""
        return self._running is not None and self._running.vm.continued

    @property
    def suspended(self) -> bool:
        """Whether it is off, and its next start goes on where it was saved. Reads a file."""
        return self._running is None and read_suspension(self._paths) is not None

    async def save(self, directory: Path, rows: Callable[[Path], None]) -> Board | None:
        """Save it as it stands into `directory`: disk, rows, and memory where it runs (it goes on).

        `rows` writes the engine's rows of that moment. Returns what the memory needs; None: there
        is none.

        Raises:
            Conflict, MachineError, StorageError, OSError: it was not saved.
        """
        if self._running is not None:
            return await save_running(self._need_running(), self._paths, directory, rows)
        async with self.held("is being saved"):
            await save_disk(self._paths, directory, rows)
        return None

    async def suspend(self) -> None:
        """Save it for the next start, and end QEMU. Raises WherryError, OSError: it runs on."""
        running = self._need_running()
        self._ending = self._background.spawn(self._put_aside(running), "machine suspend")
        await asyncio.shield(self._ending)

    async def cut_off(self) -> None:
        """End it as a power cut does. Does nothing when it is off."""
        await self._break_off_start()
        await self._left.end()
        if self._ending is None and self._running is not None:
            self._ending = self._background.spawn(self._cut(self._running), "machine end")
        if self._ending is not None:
            await asyncio.shield(self._ending)

    async def aclose(self) -> None:
        """Let go of the machine; a running VM runs on. A start is broken off, a stop finished."""
        await self._break_off_start()
        if self._ending is not None:
            await asyncio.wait({self._ending})
        await self._background.aclose()
        self._transports.forget()
        running, self._running = self._running, None
        if running is not None:
            await running.link.aclose()
            await running.vm.aclose()

    def inspect(self) -> dict[str, Any]:
        """Everything about the machine, as JSON. Times in ns since the epoch, memory in MiB."""
        record = self._running.vm.record if self._running else None
        facts: dict[str, Any] = {
            "name": self.name,
            "state": self.state.value,
            "reason": self._reason,
            "paused": self.paused,
            "suspended": self.suspended,
            "notices": list(self.notices),
            **configuration_facts(self.config, self._paths, record),
        }
        if self._running is not None:
            facts |= running_facts(self._running)
            facts["carried_by"] = self._transports.carried_by
        return facts

    def console_tail(self, lines: int) -> str:
        """The console's last lines, of this boot or the last one. Reads a file."""
        return tail_of(self._paths.console_log, lines)

    async def _start(self, template: bool) -> LinkPort:
        self._move(MachineState.STARTING)
        try:
            with self.timeline.recorded(self._paths.timeline):
                prepare_directories(self._home, self._paths)
                config = self.config
                if not self._paths.config.exists():
                    write_config(self._paths.config, self._configuration.stored())
                image = await self.prepare_image(self._report)
                running = self._assemble(
                    *await self._bringup.boot(config, image, template=template)
                )
                if running.vm.continued:
                    await self._take_up_layers(running)
        except asyncio.CancelledError:  # by `stop`, which waits for the end of it
            self._forget_record()
            self._move(MachineState.STOPPED)
            raise MachineError("the start of the machine was broken off") from None
        except BaseException as error:
            self._forget_record()
            self._move(MachineState.FAILED, str(error).partition("\n")[0])
            raise
        finally:
            self._starting = None
        self._enter(running)
        making = self._bringup.make_template(config, image)
        self._baking = self._background.spawn(making, "machine template")
        return running.link

    async def _take_up_layers(self, running: Running) -> None:
        """Learn what is plugged; a machine that does not say is ended. Raises WherryError."""
        try:
            await running.layers.adopt()
        except WherryError:
            await running.link.aclose()
            await running.vm.quit()
            raise

    def _assemble(self, vm: RunningQemu, link: LinkPort) -> Running:
        async def call(method: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
            return await link.call(method, params, timeout=timeout)

        disk, changed = self._paths.data_disk, partial(tell, self._pause_callbacks)
        pauses = Pauses(vm.qmp, disk, self._background.spawn, self._notice, changed)
        return Running(vm, link, LayerPool(vm.qmp, call, self._pins), pauses)

    def _enter(self, running: Running) -> None:
        self._running = running

        def event(name: str, data: Mapping[str, Any]) -> None:
            if name == "SHUTDOWN":
                running.guest_ended = str(data.get("reason"))

        def connected(_peer: dict[str, Any]) -> None:
            self._tell_link(running.link)

        running.vm.qmp.on_event(event)
        self._background.spawn(self._watch(running), "machine watch")
        self._background.spawn(running.vitals.watch(), "machine vitals")
        self._move(MachineState.RUNNING)
        self._tell_link(running.link)
        running.link.on_connect(connected)

    async def _watch(self, running: Running) -> None:
        """Notice when QEMU ends without having been asked to."""
        await running.vm.qmp.wait_closed()
        if self._running is not running or self._ending is not None:
            return
        self._ending = self._background.spawn(self._bury(running), "machine end")
        await asyncio.shield(self._ending)

    async def _bury(self, running: Running) -> None:
        await running.vm.kill(grace=2.0)  # it is gone, or of no use without its control connection
        panic = running.vm.console.panic if running.vm.console else None
        failed, reason = end_of_guest(running.guest_ended, panic, running.vm.exit_status())
        end = MachineState.FAILED if failed else MachineState.STOPPED
        logger.error("the machine is gone: %s", reason)
        await self._leave(running, end, reason)

    async def _shut_down(self, running: Running, grace: float) -> None:
        self._move(MachineState.STOPPING)
        if not await powered_off(running, grace):
            logger.warning("the guest does not power off: QEMU is ended")
        await running.vm.quit()
        await self._leave(running, MachineState.STOPPED)

    async def _put_aside(self, running: Running) -> None:
        try:
            await put_aside(running, self._paths)
        except BaseException:
            self._ending = None
            raise
        self._move(MachineState.STOPPING)
        await self._leave(running, MachineState.STOPPED, "suspended")

    async def _cut(self, running: Running) -> None:
        self._move(MachineState.STOPPING)
        await cut(running)
        await self._leave(running, MachineState.STOPPED)

    async def _break_off_start(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait({self._starting})

    async def _leave(self, running: Running, state: MachineState, reason: str = "") -> None:
        await running.link.aclose()
        self._forget_record()
        self._running = None
        self._ending = None
        self._move(state, reason or None)

    def _need_running(self) -> Running:
        if self._running is None or self._ending is not None:
            raise MachineError(
                f"the machine is {self._state.value}", hint="start it: wherry machine start"
            )
        return self._running

    def _trim_soon(self) -> None:
        if self._running is not None and self._ending is None:
            self._background.spawn(self._trim(self._running), "layer trim")

    async def _trim(self, running: Running) -> None:
        try:
            await running.layers.trim()
        except WherryError as error:
            logger.warning("idle layers stay plugged: %s", error)

    def _move(self, state: MachineState, reason: str | None = None) -> None:
        if state not in ALLOWED[self._state]:
            raise AssertionError(f"a machine does not go from {self._state} to {state}")
        self._state = state
        self._reason = reason
        tell(self._state_callbacks, state)

    def _tell_link(self, link: LinkPort) -> None:
        if self._running is not None and self._running.link is link:
            tell(self._link_callbacks, link)

    def _report(self, phase: str, done: int, total: int) -> None:
        self.timeline.phase(phase)
        for progress in tuple(self._progress):
            progress(phase, done, total)

    def _notice(self, text: str) -> None:
        """Something that the user should read once; also called in threads."""
        logger.warning("%s", text)
        self.notices.append(text)

    def _forget_record(self) -> None:
        self._transports.forget()
        forget_vsock(self._paths)
        self._paths.qemu_record.unlink(missing_ok=True)
