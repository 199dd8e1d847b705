"""A guest's state into a file and out of it, by QEMU's migration (docs/devel/migration in QEMU).

The rule: functions over a QMP connection and paths; who the guest is, and what becomes of its
disks, is the caller's business. The guest must not run: neither while it is saved nor before it has
been loaded. Memory that is a shared file (`MemoryFile`) can be left out: the file *is* it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wherry.errors import MachineError
from wherry.machine.qmp import Qmp

SAVE_TIMEOUT = 60.0
LOAD_TIMEOUT = 60.0

_FILE_URI = (8, 2)
"""From this version on QEMU opens the file itself, and does not want descriptors of files."""

_BANDWIDTH = 1 << 40
"""Bytes in a second: as fast as it goes (QEMU's default, meant for networks, is 128 MiB)."""

_DESCRIPTOR = "state"

_ENDED = frozenset({"completed", "failed", "cancelled"})
"""MigrationStatus (qapi/migration.json)."""


async def save_state(
    qmp: Qmp, file: Path, *, without_memory: bool, timeout: float = SAVE_TIMEOUT
) -> None:
    """Write the stopped guest's state to `file` (made with mode 0600), synced by nobody.

    Args:
        without_memory: leave out what is in shared memory files.

    Raises:
        MachineError: QEMU refused (a device cannot be saved, the disk is full), or took too long.
    """
    await _set_capabilities(qmp, without_memory)
    await qmp.execute("migrate-set-parameters", {"max-bandwidth": _BANDWIDTH})
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0)
    await _migrate(qmp, "migrate", file, flags, timeout)


async def load_state(
    qmp: Qmp, file: Path, *, without_memory: bool, timeout: float = LOAD_TIMEOUT
) -> None:
    """Load what `save_state` has written into a QEMU that waits (`-incoming defer`, `-S`).

    Raises:
        MachineError: QEMU refused (and has ended itself, mostly), or took too long.
    """
    await _set_capabilities(qmp, without_memory)
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
    await _migrate(qmp, "migrate-incoming", file, flags, timeout)


async def _set_capabilities(qmp: Qmp, without_memory: bool) -> None:
    states = {"events": True, "x-ignore-shared": without_memory}
    capabilities = [{"capability": name, "state": on} for name, on in states.items()]
    await qmp.execute("migrate-set-capabilities", {"capabilities": capabilities})


async def _migrate(qmp: Qmp, command: str, file: Path, flags: int, timeout: float) -> None:
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def hear(name: str, data: Mapping[str, Any]) -> None:
        if name == "MIGRATION" and data.get("status") in _ENDED and not ended.done():
            ended.set_result(str(data["status"]))

    descriptor = os.open(file, flags, 0o600)
    qmp.on_event(hear)
    gone = asyncio.ensure_future(qmp.wait_closed())
    try:
        if qmp.version >= _FILE_URI:
            uri = f"file:{os.fspath(file)}"
        else:
            await qmp.send_file(_DESCRIPTOR, descriptor)
            uri = f"fd:{_DESCRIPTOR}"
        await qmp.execute(command, {"uri": uri})
        waited: set[asyncio.Future[Any]] = {ended, gone}
        await asyncio.wait(waited, timeout=timeout, return_when="FIRST_COMPLETED")
    finally:
        gone.cancel()
        qmp.remove_handler(hear)
        os.close(descriptor)
    if not ended.done():
        reason = "QEMU ended" if qmp.closed else f"it was not done within {timeout:g} s"
        raise MachineError(f"the machine's state: {reason}")
    if ended.result() != "completed":
        raise MachineError(f"the machine's state: {await _complaint(qmp)}")


async def _complaint(qmp: Qmp) -> str:
    answer = await qmp.execute("query-migrate")
    return str(answer.get("error-desc") or f"migration {answer.get('status')}")
