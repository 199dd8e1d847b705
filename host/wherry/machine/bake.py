"""A template is made: by a hidden machine of the same shape that boots, is saved, and is restored
once as proof. In the background, at the lowest priority; nothing of it may cost the user a failure.

The hidden machine has no disk, no set-up and no secret. Its memory is a shared file, which is
copied without the zeros when QEMU is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from wherry.errors import BootFailed, WherryError
from wherry.machine.argv import MemoryFile, VmSpec
from wherry.machine.boot import PHASES, Deadlines, RunningQemu, await_agent
from wherry.machine.disk import create_disk
from wherry.machine.guest import LinkPort, prepare, set_up
from wherry.machine.identity import Identity
from wherry.machine.memoryfile import copy_memory, make_memory
from wherry.machine.record import read_record
from wherry.machine.restore import restore
from wherry.machine.savestate import save_state
from wherry.machine.template import Origin, Template, Templates
from wherry.osutil import (
    LockHeld,
    is_alive,
    lock_file,
    lower_priority,
    private_directory,
    sync_descriptor,
    terminate,
)
from wherry.paths import Home, MachinePaths

logger = logging.getLogger(__name__)

_MIB = 1 << 20

PATIENCE = 10.0
"""How many times longer than usual each phase may take, at the lowest priority."""


class NotProven(WherryError):
    """The saved machine did not come back: `key` is of no use."""


async def bake(
    spec: VmSpec,
    key: str,
    origin: Origin,
    home: Home,
    templates: Templates,
    *,
    start: Callable[[VmSpec, MachinePaths], Awaitable[RunningQemu]],
    open_link: Callable[[Path, float], Coroutine[Any, Any, LinkPort]],
    deadlines: Deadlines,
    idle: bool,
) -> None:
    """Make the template `key` of machines like `spec`. Nothing happens when one is being made.

    Args:
        start: starts QEMU for these paths, paused.
        idle: at the lowest priority.

    Raises:
        NotProven: it was saved, but not restored; the key is marked.
        WherryError, OSError: it could not be made this time.
    """
    private_directory(home.templates)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock_file(home.templates / "bake.lock", timeout=0))
        except LockHeld:
            return
        await asyncio.to_thread(_clear_away, home)
        if templates.known(key):
            return
        draft = home.template_draft(key)
        oven = _Oven(
            replace(spec, name=f"template-{key[:8]}"), draft, start, open_link, deadlines, idle
        )
        try:
            template, digest = await oven.save()
            try:
                await oven.prove(template)
            except WherryError as error:
                if isinstance(error, BootFailed) and error.phase == PHASES[0]:
                    raise  # QEMU never came to the saved state: a file is gone, the disk is full
                reason = str(error).partition("\n")[0]
                await asyncio.to_thread(templates.mark_bad, key, reason, origin)
                raise NotProven(f"the saved machine cannot be restored: {reason}") from error
            await asyncio.to_thread(templates.add, key, template.directory, digest, origin)
        finally:
            _remove(draft)
        gone = await asyncio.to_thread(templates.collect)
    logger.info("starts restore template %s from now on; removed: %s", key, gone or "none")


class _Oven:
    """One attempt, in the directory `draft`."""

    def __init__(
        self,
        spec: VmSpec,
        draft: MachinePaths,
        start: Callable[[VmSpec, MachinePaths], Awaitable[RunningQemu]],
        open_link: Callable[[Path, float], Coroutine[Any, Any, LinkPort]],
        deadlines: Deadlines,
        idle: bool,
    ) -> None:
        self._spec = spec
        self._draft = draft
        self._start_qemu = start
        self._open_link = open_link
        self._deadlines = deadlines.times(PATIENCE)
        self._idle = idle

    async def save(self) -> tuple[Template, str]:
        """Boot the hidden machine and save it. Returns the template and its memory's digest."""
        template = Template("", private_directory(self._draft.root / "template"))
        private_directory(self._draft.sockets)
        memory = self._draft.root / "ram"
        make_memory(memory, self._spec.memory_mib * _MIB)
        spec = replace(self._spec, data_disk=None, memory_file=MemoryFile(memory, shared=True))
        vm = await self._start(spec)
        patience = self._deadlines
        opening = self._open_link(
            self._draft.agent_socket, patience.kernel + patience.init + patience.agent
        )
        link = await await_agent(vm, self._draft, opening, deadlines=patience)
        try:
            await prepare(link)
            await vm.qmp.execute("stop")
            with contextlib.suppress(OSError):  # nobody misses it much
                shutil.copyfile(self._draft.console_log, template.console)
            await save_state(vm.qmp, template.state, without_memory=True)
        finally:
            await link.aclose()
            await vm.quit()
        return template, await asyncio.to_thread(_finish, memory, template)

    async def prove(self, template: Template) -> None:
        """Start a machine from it as machines are started.

        Raises:
            WherryError: it is of no use.
        """
        disk = self._draft.root / "proof.qcow2"
        create_disk(disk, self._spec.disk_bytes)
        patience = self._deadlines.restore
        vm, link = await restore(
            replace(self._spec, data_disk=disk),
            template,
            self._draft,
            self._open_link(self._draft.agent_socket, 2 * patience),
            start=self._start,
            deadline=patience,
        )
        try:
            await set_up(link, "proof", Identity.random())
        finally:
            await link.aclose()
            await vm.quit()

    async def _start(self, spec: VmSpec) -> RunningQemu:
        vm = await self._start_qemu(spec, self._draft)
        if self._idle:
            lower_priority(vm.record.identity.pid)
        return vm


def _finish(memory: Path, template: Template) -> str:
    digest = copy_memory(memory, template.ram)
    memory.unlink()
    with template.state.open("rb") as state:
        sync_descriptor(state.fileno())
    return digest


def _clear_away(home: Home) -> None:
    """What an engine left that was ended while it made one. Blocking; with the lock held."""
    for root in sorted(home.templates.glob("*.draft")):
        draft = home.template_draft(root.stem)
        record = read_record(draft.qemu_record)
        if record is not None and is_alive(record.identity):
            logger.warning("ending the hidden machine that an earlier engine left")
            terminate(record.identity, grace=0)
        _remove(draft)
    for aside in home.templates.glob("*.gone-*"):
        shutil.rmtree(aside, ignore_errors=True)


def _remove(draft: MachinePaths) -> None:
    for directory in {draft.root, draft.sockets}:
        shutil.rmtree(directory, ignore_errors=True)
