"""One machine brought up: from its configuration to a guest that is set up, or one taken over.

Knows the order of things; the things themselves are in the modules that it calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from wherry.errors import AgentError, Conflict, LinkError, MachineError, StorageError, WherryError
from wherry.link import local_socket, open_link
from wherry.machine.accel import AccelChoice, choose_accel, kernel_options
from wherry.machine.adopt import find_running
from wherry.machine.argv import VmSpec, has_balloon
from wherry.machine.boot import (
    PHASES,
    Deadlines,
    Progress,
    RunningQemu,
    await_agent,
    start_qemu,
)
from wherry.machine.config import MachineConfig, config_from_json
from wherry.machine.disk import disk_size, ensure_disk
from wherry.machine.endpoints import Endpoints, default_endpoints
from wherry.machine.find import Qemu, find_qemu
from wherry.machine.growing import fill_disk_of
from wherry.machine.guest import (
    LinkPort,
    fetch_bytecode,
    older_first_process,
    peer_digest,
    replace_agent,
    set_up,
)
from wherry.machine.identity import read_identity
from wherry.machine.image import prepare_image
from wherry.machine.initrd import BootFiles
from wherry.machine.record import write_record
from wherry.machine.resuming import give_up, resume, tell_guest
from wherry.machine.saved import SavedMachine, can_restore
from wherry.machine.transports import Transports
from wherry.machine.vsock import start_vsock
from wherry.osutil.longpaths import for_programs
from wherry.paths import Home, MachinePaths
from wherry.settings import Settings
from wherry_guest.identity import digest as source_digest
from wherry_image import VmImage, agent_cpio

logger = logging.getLogger(__name__)

_ADOPTION_TIMEOUT = 30.0
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Tools:
    """The machine's neighbours; tests put others in their place.

    Attributes:
        open_link: connects to the agent's socket within so many seconds; None: `wherry.link`.
    """

    find_qemu: Callable[[str, str | None], Qemu] = find_qemu
    choose_accel: Callable[[Qemu, str, Path], AccelChoice] = choose_accel
    prepare_image: Callable[[MachineConfig, Home, Settings, Progress | None], VmImage] = (
        prepare_image
    )
    agent_cpio: Callable[[], bytes] = agent_cpio
    agent_digest: Callable[[], str] = source_digest
    open_link: Callable[[Path, float], Awaitable[LinkPort]] | None = None
    deadlines: Deadlines = field(default_factory=Deadlines)
    endpoints: Endpoints = field(default_factory=default_endpoints)
    bake_after: float = 2.0
    """Seconds after a boot until a template is made, so that the first commands go undisturbed."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A start: what is wanted, and what was prepared for it."""

    config: MachineConfig
    image: VmImage
    files: BootFiles
    spec: VmSpec
    start: Callable[[VmSpec, MachinePaths], Awaitable[RunningQemu]]
    note: str | None
    """For the user, when it is news."""


@dataclass(frozen=True, slots=True)
class Bringup:
    """Args:
    report: told the phase that begins.
    notice: told what the user should read once; may be called in a thread.
    """

    name: str
    home: Home
    paths: MachinePaths
    settings: Settings
    tools: Tools
    report: Progress
    notice: Callable[[str], None]
    transports: Transports

    async def boot(
        self, config: MachineConfig, image: VmImage, *, template: bool = True
    ) -> tuple[RunningQemu, LinkPort]:
        """Start QEMU and return when the guest is set up.

        Args:
            template: restore a saved machine when there is a good one.

        Raises:
            QemuNotFound, BootFailed, MachineError, LinkError: nothing runs then.
        """
        if (leftover := await find_running(self.paths)) is not None:
            await leftover.quit()  # `adopt` would have taken it over
        if (resumed := await self._resume(config, template)) is not None:
            return resumed
        job = await asyncio.to_thread(self._prepare, config, image)
        self.report(PHASES[0], 0, len(PHASES))
        attempt = await self._attempt(job) if template else None
        if isinstance(attempt, tuple):
            return attempt
        vm, link = await self._boot(job)
        if attempt is not None:
            await attempt.failed(self.notice)
        return vm, link

    async def make_template(self, config: MachineConfig, image: VmImage) -> None:
        """After a start: save a machine like it for the next ones, when there is none yet.

        In the background: what goes wrong is logged.
        """
        try:
            job = await asyncio.to_thread(self._job, config, image)
            saved = self._saved(job)
            if saved is None or saved.known():
                return
            await asyncio.sleep(self.tools.bake_after)
            await saved.bake(job.start, self._link_to, self.tools.deadlines, idle=True)
        except (WherryError, OSError) as error:
            logger.warning("no template is made, later starts boot: %s", error)

    async def save_template(self, config: MachineConfig, image: VmImage) -> dict[str, Any]:
        """The template of such a machine, made now when there is none; as `Templates.all` has it.

        Raises:
            WherryError: it cannot be made.
        """
        job = None
        if self.paths.data_disk.exists():
            job = await asyncio.to_thread(self._job, config, image)
        if job is None or not job.files.bytecode.exists():
            raise Conflict(
                "the machine was never started with this image and agent",
                hint="wherry machine start",
            )
        saved = self._saved(job)
        if saved is None:
            raise MachineError("such a machine cannot be saved", hint="its starts are boots")
        await saved.bake(job.start, self._link_to, self.tools.deadlines, idle=False)
        return saved.facts()

    async def _resume(
        self, config: MachineConfig, wanted: bool
    ) -> tuple[RunningQemu, LinkPort] | None:
        """Go on where the machine was saved. None: it was not, or cannot."""
        if not wanted and self.paths.suspended.exists():
            await give_up(self.paths, "a boot is asked for", self.notice)
        deadline = 2 * self.tools.deadlines.restore
        starting = partial(
            start_qemu,
            paths=self.paths,
            agent_digest=self.tools.agent_digest(),
            deadlines=self.tools.deadlines,
            endpoints=self.tools.endpoints,
        )

        async def start(spec: VmSpec, image_key: str) -> RunningQemu:
            self.report(PHASES[0], 0, len(PHASES))
            vm = await starting(spec, image_key=image_key)
            self.report("restore", 1, len(PHASES))
            return vm

        found = await resume(
            self.name,
            self.paths,
            asdict(config),
            find_qemu=lambda arch: self.tools.find_qemu(arch, self.settings.qemu),
            start=start,
            open_link=lambda: self._open_link(2 * deadline),
            deadline=deadline,
            notice=self.notice,
        )
        if found is None:
            return None
        vm, link = found
        try:
            await self._bring_up_to_date(link)
            await tell_guest(link)
            vm.record = replace(vm.record, ready=True)
            write_record(self.paths.qemu_record, vm.record)
        except WherryError as error:
            self.notice(f"the machine did not go on ({error}): it boots from its saved disk")
            await link.aclose()
            await vm.quit()
            return None
        except BaseException:
            await link.aclose()
            await vm.quit()
            raise
        return vm, link

    async def _attempt(self, job: _Job) -> tuple[RunningQemu, LinkPort] | SavedMachine | None:
        """Restore. None: there is nothing to restore; a SavedMachine: it did not work."""
        saved = self._saved(job)
        claimed = await saved.claim(self.notice) if saved is not None else None
        if saved is None or claimed is None:
            return None
        try:
            vm, link = await saved.restore(
                claimed,
                self.paths,
                self._open_link(2 * self.tools.deadlines.restore),
                job.start,
                self.tools.deadlines.restore,
                lambda: self.report("restore", 1, len(PHASES)),
            )
            await self._finish(vm, link, job)
        except WherryError as error:
            saved.doubt(error)
            return saved
        finally:
            saved.release(claimed)
        return vm, link

    async def _boot(self, job: _Job) -> tuple[RunningQemu, LinkPort]:
        deadlines = self.tools.deadlines
        spec = replace(job.spec, balloon=True)  # its memory is no template's: it can be given back
        if job.config.link == "vsock":
            spec = replace(spec, vsock=await asyncio.to_thread(start_vsock, self.paths))
        vm = await job.start(spec, self.paths)
        opening = self._open_link(deadlines.kernel + deadlines.init + deadlines.agent)
        link = await await_agent(vm, self.paths, opening, deadlines=deadlines, progress=self.report)
        await self._finish(vm, link, job)
        return vm, link

    async def _finish(self, vm: RunningQemu, link: LinkPort, job: _Job) -> None:
        """From an agent that answers to a machine that is ready."""
        try:
            self.report("disk", PHASES.index("disk"), len(PHASES))
            identity = read_identity(self.paths.machine_id)
            await set_up(link, self.name, identity, balloon=has_balloon(vm.record.argv))
            await self._fill_disk(link)
            self.report("ready", PHASES.index("ready"), len(PHASES))
            await self._keep_bytecode(link, job.files)
            vm.record = replace(vm.record, ready=True, config=asdict(job.config))
            write_record(self.paths.qemu_record, vm.record)
            await self.transports.settle(vm, link, job.config)
        except BaseException:
            await link.aclose()
            await vm.quit()
            raise

    async def adopt(self) -> tuple[RunningQemu, LinkPort] | None:
        """Connect to the guest that an earlier engine left. None: there is none (any more)."""
        vm = await find_running(self.paths)
        if vm is None:
            return None
        try:
            link = await self._open_link(_ADOPTION_TIMEOUT)
        except LinkError as error:
            logger.error("the running machine's agent cannot be reached, it is ended: %s", error)
            await vm.quit()
            return None
        try:
            await self._bring_up_to_date(link)
            if vm.record.config is not None:
                await self.transports.settle(vm, link, config_from_json(vm.record.config))
        except WherryError as error:
            logger.error("the running machine cannot be taken over, it is ended: %s", error)
            await link.aclose()
            await vm.quit()
            return None
        return vm, link

    def _prepare(self, config: MachineConfig, image: VmImage) -> _Job:
        """What must be there before QEMU starts. Blocking."""
        ensure_disk(self.paths.data_disk, config.disk_gib * _GIB)
        job = self._job(config, image)
        if job.note is not None:
            self.notice(job.note)
        return job

    def _job(self, config: MachineConfig, image: VmImage) -> _Job:
        """Blocking."""
        digest = self.tools.agent_digest()
        files = BootFiles(image.initrd.parent, image.initrd, digest)
        qemu = self.tools.find_qemu(config.arch, self.settings.qemu)
        choice = self.tools.choose_accel(qemu, config.accel, self.home.probes)
        spec = VmSpec(
            name=self.name,
            qemu=qemu,
            accel=choice.name,
            cpus=config.cpus,
            memory_mib=config.memory_mib,
            kernel=for_programs(
                image.fast_kernel if choice.name == "tcg" and qemu.boots_elf else image.kernel
            ),
            initrd=for_programs(files.combined(self.tools.agent_cpio())),
            cmdline=f"{image.cmdline} {kernel_options(qemu.arch, choice.name)}".rstrip(),
            data_disk=for_programs(self.paths.data_disk),
            disk_bytes=disk_size(self.paths.data_disk),
            cpu=config.cpu,
        )
        start = partial(
            start_qemu,
            image_key=image.key,
            agent_digest=digest,
            deadlines=self.tools.deadlines,
            endpoints=self.tools.endpoints,
        )
        return _Job(config, image, files, spec, start, choice.note)

    def _saved(self, job: _Job) -> SavedMachine | None:
        """The template of such starts, made or not; None: they cannot have one, or should not."""
        able = self.tools.endpoints.passes_files and can_restore(job.spec, job.config.link)
        if not self.settings.template or not able:
            return None
        return SavedMachine(self.home, job.spec, job.image)

    async def _fill_disk(self, link: LinkPort) -> None:
        """The disk was made larger while the machine was off, or a power cut came between."""
        try:
            await fill_disk_of(link, self.paths.data_disk)
        except (LinkError, StorageError) as error:
            self.notice(f"the data disk stays as large as it was: {error}")

    async def _keep_bytecode(self, link: LinkPort, files: BootFiles) -> None:
        """Once per image and agent, before any container runs: PID 1 will execute it."""
        if files.bytecode.exists():
            return
        try:
            archive = await fetch_bytecode(link)
            await asyncio.to_thread(files.keep_bytecode, archive)
        except (LinkError, MachineError, OSError) as error:
            logger.warning("later starts will be slower, there is no byte code: %s", error)

    async def _bring_up_to_date(self, link: LinkPort) -> None:
        """Replace an agent of another version; one that refuses is driven as it is. Its PID 1 is
        kept, and told of."""
        digest = self.tools.agent_digest()
        if peer_digest(link) != digest:
            archive = await asyncio.to_thread(self.tools.agent_cpio)
            try:
                await replace_agent(link, archive, digest)
            except AgentError as error:
                self.notice(f"the running machine keeps its older agent ({error}); restart it")
                return
        if (notice := await older_first_process(link, digest)) is not None:
            self.notice(notice)

    async def _open_link(self, deadline: float) -> LinkPort:
        return await self._link_to(self.paths.agent_socket, deadline)

    async def _link_to(self, socket: Path, deadline: float) -> LinkPort:
        if self.tools.open_link is not None:
            return await self.tools.open_link(socket, deadline)
        return await open_link(local_socket(socket), deadline=deadline)
