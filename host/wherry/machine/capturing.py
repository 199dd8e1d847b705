"""A running machine saved as it stands: memory, devices, disk; its containers run on afterwards.

The guest stands still meanwhile and notices nothing but the time. Order: no layer is on its way,
the guest is stopped, what QEMU consists of is asked of QEMU itself, memory and devices are written,
and only then, when QEMU has let go of its disks (that is what the end of a migration means), they
are copied. Whatever happens, the guest goes on.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

from wherry.errors import Conflict, MachineError
from wherry.machine.argv import has_balloon
from wherry.machine.boot import RunningQemu
from wherry.machine.layers import LayerPool, plugged_layers
from wherry.machine.pausing import Pauses
from wherry.machine.qmp import Qmp
from wherry.machine.record import QemuRecord
from wherry.machine.saved import can_save
from wherry.machine.savestate import save_state
from wherry.machine.snapshot import Board, PluggedLayer
from wherry.machine.states import Running
from wherry.machine.template import host_facts
from wherry.osutil import sync_descriptor
from wherry.osutil.sparse import copy_sparse, link_or_copy
from wherry.paths import MachinePaths

SYNC_TIMEOUT = 30.0

_TYPE_SUFFIX = "-machine"
"""Of the QOM type of a machine type (TYPE_MACHINE_SUFFIX, include/hw/boards.h)."""

_NEEDED = frozenset({"-cpu", "-smp", "-m", "-append", "-kernel"})
_PLACEHOLDER = 4096
_CARRIERS = ("vhost-vsock-pci", "vhost-user-vsock-pci")


async def capture(
    vm: RunningQemu,
    layers: LayerPool,
    pauses: Pauses,
    directory: Path,
    beside: Callable[[], Awaitable[None]],
    *,
    go_on: bool = True,
) -> Board:
    """Save memory and devices into `directory`, with what else it takes to go on from there.

    Args:
        directory: empty, private.
        beside: called while the guest stands still and its disk's file is at rest.
        go_on: whether the guest goes on; else QEMU is of no more use (unless this fails).

    Raises:
        Conflict: a machine of this kind cannot be saved.
        MachineError, StorageError, OSError: it was not saved; the guest goes on.
    """
    board = None
    async with layers.still(), pauses.held():
        await refuse_unsavable(vm.qmp, vm.record.accel)
        await vm.qmp.execute("stop")
        try:
            described = await describe(vm)
            await save_state(vm.qmp, directory / "state", without_memory=False)
            await beside()
            board = described
        finally:
            if go_on or board is None:
                await vm.qmp.execute("cont")
    await asyncio.to_thread(_keep_files, vm.record, directory)
    return board


async def save_running(
    running: Running, paths: MachinePaths, directory: Path, rows: Callable[[Path], None]
) -> Board:
    """`capture` with the disk, and with what the engine knows at that moment.

    Layers that no container needs are unplugged before: nothing would keep their files. What the
    guest has not written yet is written, so that the disk is good for a boot of its own.
    """
    await running.layers.trim(0)
    await running.link.call("system.sync", {}, timeout=SYNC_TIMEOUT)

    async def beside() -> None:
        await save_disk(paths, directory, rows)

    return await capture(running.vm, running.layers, running.pauses, directory, beside)


async def save_disk(paths: MachinePaths, directory: Path, rows: Callable[[Path], None]) -> None:
    """The data disk, shared with the original where the file system can, and the engine's rows.

    Raises:
        Conflict: there is no disk yet.
        StorageError: the host's disk is full.
    """
    if not paths.data_disk.exists():
        raise Conflict("the machine was never started: there is nothing to save")
    await asyncio.to_thread(copy_sparse, paths.data_disk, directory / paths.data_disk.name)
    rows(directory / paths.state_db.name)


async def refuse_unsavable(qmp: Qmp, accel: str) -> None:
    """Refuse what cannot be saved before the guest is touched.

    Raises:
        Conflict: this accelerator saves nothing, or a device's state is another process's.
    """
    if not can_save(accel):
        raise Conflict(
            f"machines cannot be saved while they run on {accel} here",
            hint="stop it first: then its disk is saved",
        )
    chardevs = await qmp.execute("query-chardev")
    labels = {str(chardev.get("label")) for chardev in chardevs}
    if labels & {"vhost", "ssh"}:
        raise Conflict(
            "a machine that is reached by vsock or SSH cannot be saved while it runs",
            hint="wherry machine set --link serial, then start it anew; or stop it first",
        )


async def describe(vm: RunningQemu) -> Board:
    """What QEMU was started as, and what was plugged in since."""
    record, qmp = vm.record, vm.qmp
    if any(carrier in word for word in record.argv for carrier in _CARRIERS):
        raise Conflict("a machine that is reached by vsock cannot be saved while it runs")
    option = _options(record.argv)
    kind = str(await qmp.execute("qom-get", {"path": "/machine", "property": "type"}))
    config = dict(record.config or {})
    try:
        return Board(
            arch=str(config["arch"]),
            accel=record.accel,
            qemu=qmp.version,
            machine=kind.removesuffix(_TYPE_SUFFIX),
            cpu=option["-cpu"],
            cpus=int(option["-smp"]),
            memory_mib=int(option["-m"]),
            cmdline=option["-append"],
            balloon=has_balloon(record.argv),
            host=() if record.accel == "tcg" else tuple(host_facts()),
            layers=tuple(await _layers(qmp)),
            image_key=record.image_key,
            config=config,
        )
    except (KeyError, ValueError) as error:
        raise MachineError(f"it is not known how this machine was started ({error})") from error


async def _layers(qmp: Qmp) -> list[PluggedLayer]:
    found = await plugged_layers(qmp)
    return [PluggedLayer(lun, serial, path) for lun, serial, path in found]


def _options(argv: tuple[str, ...]) -> dict[str, str]:
    """The options that are given once, by name."""
    return {name: value for name, value in itertools.pairwise(argv) if name in _NEEDED}


def _keep_files(record: QemuRecord, directory: Path) -> None:
    """On disk, and independent of what becomes of the VM image.

    The guest has read both long ago; QEMU wants them on its command line all the same, and the
    kernel's kind decides which firmware it has. What was the initial RAM disk does not matter.
    """
    link_or_copy(Path(_options(record.argv)["-kernel"]), directory / "kernel")
    (directory / "initrd").write_bytes(bytes(_PLACEHOLDER))
    with (directory / "state").open("rb") as state:
        sync_descriptor(state.fileno())
