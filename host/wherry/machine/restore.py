"""A start that restores a template: the guest goes on behind its agent's first words.

Where the saved guest saw a disk with nothing on it, which it never looked at, it now finds the
machine's own; what makes the machine itself (clock, entropy, id, network address) is
`system.setup`'s, as after a boot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from wherry.errors import LinkError, MachineError
from wherry.machine.argv import MemoryFile, VmSpec
from wherry.machine.boot import RunningQemu, drop, failure
from wherry.machine.savestate import load_state
from wherry.machine.template import Template
from wherry.paths import MachinePaths

PHASE = "restore"

T = TypeVar("T")


def restoring(spec: VmSpec, template: Template) -> VmSpec:
    """How QEMU is started for it: its memory is a private view of the file."""
    memory = MemoryFile(template.ram, shared=False)
    return replace(spec, memory_file=memory, incoming=True)


async def restore(
    spec: VmSpec,
    template: Template,
    paths: MachinePaths,
    link: Coroutine[Any, Any, T],
    *,
    start: Callable[[VmSpec], Awaitable[RunningQemu]],
    deadline: float,
) -> tuple[RunningQemu, T]:
    """Start QEMU with `template` and return when `link` is connected.

    Args:
        spec: of the machine, with its data disk.
        start: starts QEMU paused, as `start_qemu`.
        deadline: seconds for loading, and again for the agent's answer.

    Raises:
        BootFailed: phases `spawned` and `restore`. QEMU is gone.
    """

    async def load(vm: RunningQemu) -> None:
        if vm.console is not None:
            vm.console.begin_with(template.boot_messages())
        await load_state(vm.qmp, template.state, without_memory=True, timeout=deadline)

    return await awaken(
        restoring(spec, template), load, paths, link, start=start, deadline=deadline
    )


async def awaken(
    spec: VmSpec,
    load: Callable[[RunningQemu], Awaitable[None]],
    paths: MachinePaths,
    link: Coroutine[Any, Any, T],
    *,
    start: Callable[[VmSpec], Awaitable[RunningQemu]],
    deadline: float,
) -> tuple[RunningQemu, T]:
    """Start QEMU, have its state loaded, let the guest go on, return when `link` is connected.

    Args:
        spec: of a QEMU that waits for a state.
        load: loads it.

    Raises:
        BootFailed: as `restore`.
    """
    connecting = asyncio.ensure_future(link)
    try:
        vm = await start(spec)
    except BaseException:
        await drop(connecting)
        raise
    try:
        await load(vm)
        await vm.qmp.execute("cont")
        return vm, await _answered(vm, connecting, deadline)
    except (MachineError, LinkError, OSError) as error:
        await drop(connecting)
        raise await failure(vm, paths, PHASE, error) from error
    except BaseException:
        await drop(connecting)
        await vm.kill()
        raise


async def _answered(vm: RunningQemu, connecting: asyncio.Future[T], deadline: float) -> T:
    gone = asyncio.ensure_future(vm.qmp.wait_closed())
    waited: set[asyncio.Future[Any]] = {connecting, gone}
    try:
        await asyncio.wait(waited, timeout=deadline, return_when="FIRST_COMPLETED")
    finally:
        gone.cancel()
    if connecting.done():
        return connecting.result()
    if vm.qmp.closed:
        raise MachineError("QEMU ended")
    raise MachineError(f"the agent did not answer within {deadline:g} s")
