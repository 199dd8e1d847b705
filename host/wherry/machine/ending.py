"""How a machine ends: shut down in order, put aside with its memory, or cut off."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time

from wherry.errors import AgentError, LinkError, MachineError
from wherry.machine.capturing import SYNC_TIMEOUT, capture
from wherry.machine.snapshot import IDLE, Snapshot, suspend, write_snapshot
from wherry.machine.states import Running
from wherry.osutil import private_directory
from wherry.paths import MachinePaths

logger = logging.getLogger(__name__)

_POWER_OFF_TIMEOUT = 20.0
_ANSWER_TIMEOUT = 10.0


async def powered_off(running: Running, grace: float) -> bool:
    """Ask the guest to end and wait; a link that breaks meanwhile may be that very end."""
    params = {"timeout": round(grace)}
    try:
        await running.vm.qmp.execute("query-status", timeout=_ANSWER_TIMEOUT)
    except MachineError as error:  # a QEMU that hangs carries no question to its guest
        logger.warning("QEMU does not answer: %s", error)
        return False
    try:
        await running.pauses.go_on()
    except MachineError as error:
        logger.warning("the guest cannot be asked to shut down: %s", error)
        return False
    try:
        await running.link.call("system.shutdown", params, timeout=grace + _POWER_OFF_TIMEOUT)
    except AgentError as error:
        logger.warning("the guest refuses to shut down: %s", error)
        return False
    except LinkError as error:
        logger.warning("the guest did not answer: %s", error)
    try:
        async with asyncio.timeout(grace + _POWER_OFF_TIMEOUT):
            await running.vm.qmp.wait_closed()
    except TimeoutError:
        return False
    return True


async def put_aside(running: Running, paths: MachinePaths) -> None:
    """Save memory and devices for the next start, and end QEMU.

    What the guest has not written yet is written before: should the memory be of no use later, its
    disk is as after a `sync`.

    Raises:
        WherryError, OSError: it was not saved, and runs on.
    """
    directory = paths.suspended_memory
    await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
    private_directory(directory)
    await running.link.call("system.sync", {}, timeout=SYNC_TIMEOUT)
    board = await capture(
        running.vm, running.layers, running.pauses, directory, _nothing, go_on=False
    )
    snapshot = Snapshot(directory.name, directory, time.time_ns(), board)
    await asyncio.to_thread(write_snapshot, snapshot)
    await running.link.aclose()
    await running.vm.quit()
    running.vm.exit_status()  # a child that nobody asks stays in the process table
    await asyncio.to_thread(suspend, paths, IDLE, directory)


async def _nothing() -> None:
    return


async def cut(running: Running) -> None:
    """End QEMU as a power cut does."""
    await running.vm.kill(grace=0)
    running.vm.exit_status()  # as above
