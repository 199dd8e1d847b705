"""A start that takes up the memory which goes with the machine's disk: of a snapshot that was put
in its place, or of a machine that was idle.

The rule: what is taken up is forgotten, on disk, before the guest executes anything: from then on
its disk is another one. What cannot be taken up (QEMU is another version, the processor another
one, a layer's file is gone, QEMU refuses) costs one line and a boot from the same disk.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from wherry.errors import LinkError, MachineError
from wherry.machine.argv import VmSpec
from wherry.machine.boot import RunningQemu
from wherry.machine.find import Qemu
from wherry.machine.guest import ENTROPY_BYTES, LinkPort
from wherry.machine.layers import plug_again
from wherry.machine.restore import awaken
from wherry.machine.savestate import load_state
from wherry.machine.snapshot import (
    IDLE,
    Board,
    Snapshot,
    abandon,
    drop_memory,
    forget_suspension,
    read_snapshot,
    read_suspension,
)
from wherry.machine.template import host_facts
from wherry.osutil import private_directory
from wherry.osutil.sparse import link_or_copy
from wherry.paths import MachinePaths

logger = logging.getLogger(__name__)


async def resume(
    name: str,
    paths: MachinePaths,
    config: Mapping[str, Any],
    *,
    find_qemu: Callable[[str], Qemu],
    start: Callable[[VmSpec, str], Awaitable[RunningQemu]],
    open_link: Callable[[], Coroutine[Any, Any, LinkPort]],
    deadline: float,
    notice: Callable[[str], None],
) -> tuple[RunningQemu, LinkPort] | None:
    """Take up what waits. None: nothing does (any more), and the machine is to be booted.

    Args:
        config: what the next start would have.
        start: starts QEMU paused; the second argument is the VM image's key.
        notice: told why what waits is not taken up.

    Raises:
        OSError: it cannot be forgotten, so the disk must not be written to.
    """
    if not paths.suspended.exists():
        return None
    try:
        snapshot, qemu = await asyncio.to_thread(_usable, paths, config, find_qemu)
    except MachineError as error:
        await give_up(paths, str(error), notice)
        return None
    board = snapshot.board
    assert board is not None, "what is usable has one"

    async def load(vm: RunningQemu) -> None:
        layers = ((layer.lun, layer.serial, layer.path) for layer in board.layers)
        await plug_again(vm.qmp, layers)
        await load_state(vm.qmp, snapshot.state, without_memory=False, timeout=deadline)
        await asyncio.to_thread(forget_suspension, paths)

    async def start_it(spec: VmSpec) -> RunningQemu:
        return await start(spec, board.image_key)

    kernel, initrd = await asyncio.to_thread(_own_files, paths, snapshot)
    spec = _spec(name, paths, board, qemu, kernel, initrd)
    try:
        vm, link = await awaken(spec, load, paths, open_link(), start=start_it, deadline=deadline)
    except (MachineError, LinkError) as error:
        logger.warning("what was saved cannot be taken up: %s", error)
        await give_up(paths, str(error).partition("\n")[0], notice)
        return None
    vm.record = replace(vm.record, config=board.config)
    vm.continued = True
    await asyncio.to_thread(drop_memory, paths)
    return vm, link


async def give_up(paths: MachinePaths, reason: str, notice: Callable[[str], None]) -> None:
    """What waits is not taken up. Raises OSError: it cannot be forgotten."""
    notice(f"the saved memory cannot be taken up ({reason}): the machine boots from its saved disk")
    await asyncio.to_thread(abandon, paths)


async def tell_guest(link: LinkPort) -> None:
    """What is different since it was saved: the time; and random numbers must be others than those
    of the guest that went on then. Raises LinkError."""
    entropy = os.urandom(ENTROPY_BYTES).hex()
    await link.call("system.resume", {"time_ns": time.time_ns(), "entropy": entropy})


def _usable(
    paths: MachinePaths, config: Mapping[str, Any], find_qemu: Callable[[str], Qemu]
) -> tuple[Snapshot, Qemu]:
    """Raises MachineError: why it is not."""
    suspension = read_suspension(paths)
    if suspension is None:
        raise MachineError("the disk was changed since")
    snapshot = read_snapshot(suspension.directory)
    if snapshot is None or snapshot.board is None:
        raise MachineError("its files are incomplete")
    for file in (snapshot.state, snapshot.kernel, snapshot.initrd):
        if not file.is_file():
            raise MachineError(f"{file.name} is missing")
    board = snapshot.board
    if suspension.kind == IDLE and dict(board.config) != dict(config):
        raise MachineError("the machine's configuration has changed")
    qemu = find_qemu(board.arch)
    if qemu.version[:2] != board.qemu:
        was, now = (".".join(map(str, it)) for it in (board.qemu, qemu.version[:2]))
        raise MachineError(f"it is of QEMU {was}, this is QEMU {now}")
    if board.host and tuple(host_facts()) != board.host:
        raise MachineError("it is of another processor or kernel of the host")
    for layer in board.layers:
        if not Path(layer.path).is_file():
            raise MachineError(f"the layer {Path(layer.path).name} is gone")
    return snapshot, qemu


def _own_files(paths: MachinePaths, snapshot: Snapshot) -> tuple[Path, Path]:
    """The machine's own: the snapshot may be removed while it runs, and it may be saved again."""
    own = private_directory(paths.resumed)
    for source in (snapshot.kernel, snapshot.initrd):
        (own / source.name).unlink(missing_ok=True)
        link_or_copy(source, own / source.name)
    return own / snapshot.kernel.name, own / snapshot.initrd.name


def _spec(
    name: str, paths: MachinePaths, board: Board, qemu: Qemu, kernel: Path, initrd: Path
) -> VmSpec:
    return VmSpec(
        name=name,
        qemu=qemu,
        accel=board.accel,
        cpus=board.cpus,
        memory_mib=board.memory_mib,
        kernel=kernel,
        initrd=initrd,
        cmdline=board.cmdline,
        data_disk=paths.data_disk,
        disk_bytes=0,
        cpu=board.cpu,
        incoming=True,
        machine=board.machine,
        balloon=board.balloon,
    )
