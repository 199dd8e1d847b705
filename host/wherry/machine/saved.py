"""The saved machine that starts of one kind restore: whether there is one, used, doubted, made."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from wherry.errors import MachineError, StorageError, WherryError
from wherry.machine.argv import VmSpec
from wherry.machine.bake import bake
from wherry.machine.boot import Deadlines, RunningQemu
from wherry.machine.guest import LinkPort
from wherry.machine.restore import restore
from wherry.machine.template import Origin, Template, TemplateDamaged, Templates, template_key
from wherry.paths import Home, MachinePaths
from wherry_image import VmImage

logger = logging.getLogger(__name__)

_ACCELERATORS = ("tcg", "kvm")
"""WHPX blocks migration (target/i386/whpx, whpx_init); of HVF nobody has proven it."""


def can_save(accel: str) -> bool:
    """Whether QEMU's migration works here, with this accelerator."""
    return sys.platform != "win32" and accel in _ACCELERATORS


def can_restore(spec: VmSpec, link: str) -> bool:
    """Whether such machines can be saved: QEMU must be able to (it is not with a vsock device of
    vhost's, whose address would be the saved machine's)."""
    return can_save(spec.accel) and link != "vsock"


class SavedMachine:
    """The template of all starts like this one."""

    def __init__(self, home: Home, spec: VmSpec, image: VmImage) -> None:
        self._home = home
        self._spec = spec
        self._templates = Templates(home.templates)
        self._key = template_key(spec, image.key)
        self._origin = Origin.of(spec.qemu, image.initrd.parent)
        self._failure = ""

    def known(self) -> bool:
        """Whether nothing is to be done: it is there, or is known not to work."""
        return self._templates.known(self._key)

    def facts(self) -> dict[str, Any]:
        """As `Templates.all` has it.

        Raises:
            MachineError: there is none (another process is making it).
        """
        for template in self._templates.all():
            if template["key"] == self._key:
                return template
        raise MachineError("the machine is being saved by another process")

    async def claim(self, notice: Callable[[str], None]) -> Template | None:
        """It, in use by this process; None when there is none. `notice` hears why it is gone."""
        try:
            return await asyncio.to_thread(self._templates.claim, self._key)
        except (TemplateDamaged, StorageError, OSError) as error:
            notice(f"the saved machine is of no use ({error}): it is booted and saved anew")
            return None

    async def restore(
        self,
        template: Template,
        paths: MachinePaths,
        link: Coroutine[Any, Any, LinkPort],
        start: Callable[[VmSpec, MachinePaths], Awaitable[RunningQemu]],
        deadline: float,
        started: Callable[[], None],
    ) -> tuple[RunningQemu, LinkPort]:
        """As `wherry.machine.restore`; the claim goes to QEMU. `started`: QEMU runs."""

        async def start_here(spec: VmSpec) -> RunningQemu:
            vm = await start(spec, paths)
            started()
            self._templates.pass_on(template, vm.record.identity)
            return vm

        return await restore(self._spec, template, paths, link, start=start_here, deadline=deadline)

    def release(self, template: Template) -> None:
        """This process's claim ends; QEMU's stays as long as it lives."""
        self._templates.release(template)

    def doubt(self, error: WherryError) -> None:
        """A restore failed; a boot that works will say whose fault it was."""
        self._failure = str(error).partition("\n")[0]
        logger.warning("the saved machine was not restored: %s", error)

    async def failed(self, notice: Callable[[str], None]) -> None:
        """The boot worked: the template is not used again."""
        notice(f"the saved machine could not be restored ({self._failure}): it was booted instead")
        await asyncio.to_thread(self._templates.mark_bad, self._key, self._failure, self._origin)

    async def bake(
        self,
        start: Callable[[VmSpec, MachinePaths], Awaitable[RunningQemu]],
        open_link: Callable[[Path, float], Coroutine[Any, Any, LinkPort]],
        deadlines: Deadlines,
        *,
        idle: bool,
    ) -> None:
        """Make it; see `wherry.machine.bake`."""
        await bake(
            self._spec,
            self._key,
            self._origin,
            self._home,
            self._templates,
            start=start,
            open_link=open_link,
            deadlines=deadlines,
            idle=idle,
        )
