"""A start that restores a template: the guest goes on behind its agent's first words.

The data disk is plugged in before the guest runs, so that it finds it there; what makes the machine
itself (clock, entropy, id, network address) is `system.setup`'s, as after a boot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from wherry.errors import LinkError, MachineError
from wherry.machine.argv import MemoryFile, VmSpec, data_disk_device, data_disk_node
from wherry.machine.boot import RunningQemu, drop, failure
from wherry.machine.qmp import Qmp
from wherry.machine.savestate import load_state
from wherry.machine.template import Template
from wherry.paths import MachinePaths

PHASE = "restore"

T = TypeVar("T")


def restoring(spec: VmSpec, template: Template) -> VmSpec:
    """How QEMU is started for it: without the data disk, its memory a private view of the file."""
    memory = MemoryFile(template.ram, shared=False)
    return replace(spec, data_disk=None, memory_file=memory, incoming=True)


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
        spec: of the machine, with its data disk (None: none is plugged).
        start: starts QEMU paused, as `start_qemu`.
        deadline: seconds for loading, and again for the agent's answer.

    Raises:
        BootFailed: phases `spawned` and `restore`. QEMU is gone.
    """
    connecting = asyncio.ensure_future(link)
    try:
        vm = await start(restoring(spec, template))
    except BaseException:
        await drop(connecting)
        raise
    try:
        await load_state(vm.qmp, template.state, without_memory=True, timeout=deadline)
        if spec.data_disk is not None:
            await _plug(vm.qmp, spec.data_disk)
        await vm.qmp.execute("cont")
        return vm, await _answered(vm, connecting, deadline)
    except (MachineError, LinkError, OSError) as error:
        await drop(connecting)
        raise await failure(vm, paths, PHASE, error) from error
    except BaseException:
        await drop(connecting)
        await vm.kill()
        raise


async def _plug(qmp: Qmp, data_disk: Path) -> None:
    """Sent in one go; QEMU executes them in this order."""
    await asyncio.gather(
        qmp.execute("blockdev-add", data_disk_node(data_disk)),
        qmp.execute("device_add", data_disk_device()),
    )


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
