"""One machine brought up: from its configuration to a guest that is set up, or one taken over.

Knows the order of things; the things themselves are in the modules that it calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from wherry.errors import AgentError, LinkError, MachineError, StorageError, WherryError
from wherry.link import local_socket, open_link
from wherry.machine.accel import AccelChoice, choose_accel
from wherry.machine.adopt import find_running
from wherry.machine.argv import VmSpec
from wherry.machine.boot import (
    PHASES,
    Deadlines,
    Progress,
    RunningQemu,
    await_agent,
    start_qemu,
)
from wherry.machine.config import MachineConfig
from wherry.machine.disk import ensure_disk
from wherry.machine.endpoints import Endpoints, default_endpoints
from wherry.machine.find import Qemu, find_qemu
from wherry.machine.growing import fill_disk_of
from wherry.machine.guest import LinkPort, fetch_bytecode, peer_digest, replace_agent, set_up
from wherry.machine.image import prepare_image
from wherry.machine.initrd import BootFiles
from wherry.machine.record import write_record
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

    async def boot(self, config: MachineConfig, image: VmImage) -> tuple[RunningQemu, LinkPort]:
        """Start QEMU and return when the guest is set up.

        Raises:
            QemuNotFound, BootFailed, MachineError, LinkError: nothing runs then.
        """
        if (leftover := await find_running(self.paths)) is not None:
            await leftover.quit()  # `adopt` would have taken it over
        digest = self.tools.agent_digest()
        files = BootFiles(image.initrd.parent, image.initrd, digest)
        spec = await asyncio.to_thread(self._prepare, config, image, files)
        self.report(PHASES[0], 0, len(PHASES))
        deadlines = self.tools.deadlines
        vm = await start_qemu(
            spec,
            self.paths,
            image_key=image.key,
            agent_digest=digest,
            deadlines=deadlines,
            endpoints=self.tools.endpoints,
        )
        opening = self._open_link(deadlines.kernel + deadlines.init + deadlines.agent)
        link = await await_agent(vm, self.paths, opening, deadlines=deadlines, progress=self.report)
        try:
            self.report("disk", PHASES.index("disk"), len(PHASES))
            await set_up(link, self.name)
            await self._fill_disk(link)
            self.report("ready", PHASES.index("ready"), len(PHASES))
            await self._keep_bytecode(link, files)
            vm.record = replace(vm.record, ready=True, config=asdict(config))
            write_record(self.paths.qemu_record, vm.record)
        except BaseException:
            await link.aclose()
            await vm.quit()
            raise
        return vm, link

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
        except WherryError as error:
            logger.error("the running machine cannot be taken over, it is ended: %s", error)
            await link.aclose()
            await vm.quit()
            return None
        return vm, link

    def _prepare(self, config: MachineConfig, image: VmImage, files: BootFiles) -> VmSpec:
        """What must be there before QEMU starts. Blocking."""
        qemu = self.tools.find_qemu(config.arch, self.settings.qemu)
        choice = self.tools.choose_accel(qemu, config.accel, self.home.probes)
        if choice.note is not None:
            self.notice(choice.note)
        ensure_disk(self.paths.data_disk, config.disk_gib * _GIB)
        return VmSpec(
            name=self.name,
            qemu=qemu,
            accel=choice.name,
            cpus=config.cpus,
            memory_mib=config.memory_mib,
            kernel=image.fast_kernel if choice.name == "tcg" and qemu.boots_elf else image.kernel,
            initrd=files.combined(self.tools.agent_cpio()),
            cmdline=image.cmdline,
            data_disk=self.paths.data_disk,
            cpu=config.cpu,
        )

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
        """Replace an agent of another version; one that refuses is driven as it is."""
        digest = self.tools.agent_digest()
        if peer_digest(link) == digest:
            return
        archive = await asyncio.to_thread(self.tools.agent_cpio)
        try:
            await replace_agent(link, archive, digest)
        except AgentError as error:
            self.notice(f"the running machine keeps its older agent ({error}); restart it")

    async def _open_link(self, deadline: float) -> LinkPort:
        if self.tools.open_link is not None:
            return await self.tools.open_link(self.paths.agent_socket, deadline)
        return await open_link(local_socket(self.paths.agent_socket), deadline=deadline)
