"""Find the QEMU that an earlier engine left, connect to it, or clear away what is of no use.

What QEMU answers counts: the record only says who to ask, and whether the guest was ready.
"""

from __future__ import annotations

import asyncio
import logging

from wherry.errors import MachineError
from wherry.machine.boot import RunningQemu
from wherry.machine.console import Console
from wherry.machine.endpoints import forget_sockets
from wherry.machine.pausing import DISK_FULL, StillPaused, has_room
from wherry.machine.qmp import Qmp
from wherry.machine.record import QemuRecord, read_record
from wherry.osutil import is_alive, terminate
from wherry.paths import MachinePaths

logger = logging.getLogger(__name__)

_QMP_TIMEOUT = 10.0

_RUNS = "running"
_BY_HAND, _IO_ERROR, _SAVED = "paused", "io-error", "postmigrate"
_CAN_GO_ON = (_BY_HAND, _IO_ERROR, _SAVED)
"""RunState (qapi/run-state.json): stopped by a full disk, by hand or to be saved; `cont` lets it
go on."""
_SAVING = frozenset({"setup", "active", "device", "cancelling"})
"""MigrationStatus (qapi/migration.json) of an engine that died while it saved the machine."""
_SAVING_PATIENCE = 10.0


async def find_running(paths: MachinePaths) -> RunningQemu | None:
    """The running QEMU of this machine, connected to; None when there is none that can go on.

    One that cannot (its start was broken off, its guest has ended, it does not answer) is ended.

    Raises:
        StillPaused: it waits for room on the host's disk.
    """
    record = read_record(paths.qemu_record)
    alive = record is not None and is_alive(record.identity)
    try:
        qmp = await Qmp.connect(paths.qmp_socket, timeout=_QMP_TIMEOUT)
    except MachineError as error:
        if alive and record is not None:
            logger.warning("QEMU %d does not answer and is ended: %s", record.identity.pid, error)
            await asyncio.to_thread(terminate, record.identity)
        _forget(paths)
        return None
    if record is None or not alive or not record.ready or not await _goes_on(qmp, paths):
        await _end(qmp, record if alive else None)
        _forget(paths)
        return None
    console = await _console(paths)
    return RunningQemu(record=record, qmp=qmp, console=console, child=None, continued=True)


async def _goes_on(qmp: Qmp, paths: MachinePaths) -> bool:
    """Whether its guest runs, or does again.

    Raises:
        MachineError: it stands still because the host's disk is full; nothing is ended then.
    """
    try:
        await _save_no_more(qmp)
        status = (await qmp.execute("query-status", timeout=_QMP_TIMEOUT))["status"]
        if status == _IO_ERROR and not has_room(paths.data_disk):
            await qmp.aclose()
            raise StillPaused(DISK_FULL)
        if status in _CAN_GO_ON:
            logger.info("the machine was %s: letting it go on", status)
            await qmp.execute("cont", timeout=_QMP_TIMEOUT)
            return True
    except StillPaused:
        raise
    except MachineError as error:
        logger.warning("QEMU answers no questions: %s", error)
        return False
    return bool(status == _RUNS)


async def _save_no_more(qmp: Qmp) -> None:
    """Break off what an earlier engine began to save; nobody would use it.

    Raises:
        MachineError: QEMU does not let it be broken off.
    """
    try:
        async with asyncio.timeout(_SAVING_PATIENCE):
            while (await qmp.execute("query-migrate")).get("status") in _SAVING:
                await qmp.execute("migrate_cancel")
                await asyncio.sleep(0.05)
    except TimeoutError as error:
        raise MachineError("QEMU does not stop saving") from error


async def _end(qmp: Qmp, record: QemuRecord | None) -> None:
    """End a QEMU; without a record of it (the engine died while it started) by its socket alone."""
    logger.warning("ending a QEMU that is of no use")
    try:
        await qmp.execute("quit", timeout=_QMP_TIMEOUT)
        async with asyncio.timeout(_QMP_TIMEOUT):
            await qmp.wait_closed()
    except (MachineError, TimeoutError) as error:
        logger.warning("QEMU did not end when asked to: %s", error)
    await qmp.aclose()
    if record is not None:
        await asyncio.to_thread(terminate, record.identity)


async def _console(paths: MachinePaths) -> Console | None:
    try:
        return await Console.connect(paths.serial_socket, paths.console_log)
    except OSError as error:
        logger.warning("the console cannot be read: %s", error)
        return None


def _forget(paths: MachinePaths) -> None:
    paths.qemu_record.unlink(missing_ok=True)
    forget_sockets(paths)
