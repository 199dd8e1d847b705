"""Layers as LUNs of one virtio-scsi target: plugged, mounted, and unplugged when long unused.

The rules (each was learned from a kernel that kept a stale identity): a LUN number is used once per
boot; an unplug begins in the guest, and the device goes only when the guest has let go of it; the
guest is told serial and UUID and reads both afresh before it mounts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from wherry.errors import LinkError, MachineError
from wherry.machine.argv import LAYER_BUS
from wherry.osutil.longpaths import for_programs

logger = logging.getLogger(__name__)

HIGHEST_LUN = 16383
"""virtio-scsi's flat addressing (virtio 1.2, 5.6.6.1) has 14 bits; QEMU's VIRTIO_SCSI_MAX_LUN."""

IDLE_LIMIT = 128
"""Layers that stay plugged though no container holds them: 110 KB of guest memory each."""

_SERIAL_DIGITS = 32
"""QEMU cuts serial numbers at 36 characters."""
_SCSI_ID_LENGTH = 20
"""The serial number is the default of `device_id`, which newer QEMUs want no longer than this."""

_ATTACH_TIMEOUT = 120.0
_UNPLUG_TIMEOUT = 15.0
_NODE = re.compile(r"layer-(\d{1,5})")
_DEVICE = re.compile(r"lun-(\d{1,5})")
_PERIPHERAL = "/machine/peripheral"
"""Where QEMU keeps devices that have an id (docs/devel/qom.rst)."""

_T = TypeVar("_T")


class QmpPort(Protocol):
    """What is asked of QMP here."""

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float = 30.0
    ) -> Any: ...
    def on_event(self, handler: Callable[[str, Mapping[str, Any]], None]) -> None: ...
    def remove_handler(self, handler: Callable[[str, Mapping[str, Any]], None]) -> None: ...


GuestCall = Callable[[str, dict[str, Any], float], Awaitable[dict[str, Any]]]
"""call(method, params, timeout): a call to the agent."""


@dataclass(frozen=True, slots=True)
class LayerDisk:
    """A layer's EROFS file. `uuid` is its superblock's, with or without dashes."""

    diff_id: str
    path: Path
    uuid: str

    @property
    def serial(self) -> str:
        return serial_of(self.diff_id)


def serial_of(diff_id: str) -> str:
    """The disk's serial number: the diffID's first 32 hex digits."""
    return diff_id.rpartition(":")[2][:_SERIAL_DIGITS]


class _Slot:
    """A layer's LUN. `present`: mounted in the guest; else it is arriving or leaving."""

    __slots__ = ("diff_id", "lun", "present", "settled", "used")

    def __init__(self, diff_id: str, lun: int, used: int, *, present: bool) -> None:
        self.diff_id = diff_id
        self.lun = lun
        self.used = used
        self.present = present
        self.settled = asyncio.Event()


class LayerPool:
    """The layers of one running VM.

    Args:
        call: to the agent that runs now.
        pins: holder to diffIDs that must stay; the caller's, looked at whenever it matters.
        idle_limit: how many unpinned layers may stay.
    """

    def __init__(
        self,
        qmp: QmpPort,
        call: GuestCall,
        pins: Mapping[str, frozenset[str]],
        *,
        idle_limit: int = IDLE_LIMIT,
    ) -> None:
        self._qmp = qmp
        self._call = call
        self._idle_limit = idle_limit
        self._slots: dict[str, _Slot] = {}
        self._pins = pins
        self._wanted: Counter[str] = Counter()
        self._next_lun = 0
        self._clock = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._moving = asyncio.Event()
        self._moving.set()

    @property
    def attached(self) -> dict[str, int]:
        """diffID to LUN of what is mounted in the guest."""
        return {slot.diff_id: slot.lun for slot in self._slots.values() if slot.present}

    @property
    def highest_lun(self) -> int:
        """The highest LUN used in this boot, -1 when none."""
        return self._next_lun - 1

    async def attach(self, disks: Sequence[LayerDisk]) -> None:
        """Plug and mount what is not there yet. Idempotent; callers may overlap.

        Raises:
            MachineError: QEMU cannot open a file, or the guest refused a layer (it says what
                differed). What was plugged for it is unplugged again.
        """
        wanted = {disk.diff_id: disk for disk in disks}
        self._wanted.update(wanted.keys())
        try:
            while not self._touch(wanted):
                await self._moving.wait()
                if missing := [disk for id, disk in wanted.items() if id not in self._slots]:
                    await self._shielded(self._plug(self._reserve(missing)))
                else:  # others are on it: when they fail, it is ours
                    unsettled = [s for id in wanted if not (s := self._slots[id]).present]
                    await unsettled[0].settled.wait()
        finally:
            self._wanted.subtract(wanted.keys())
            self._wanted += Counter()  # drops the zeros

    async def trim(self, keep: int | None = None) -> None:
        """Unplug the least recently used idle layers until `keep` (default: the limit) are left.

        Raises:
            LinkError, MachineError: as the calls that failed.
        """
        await self._moving.wait()
        held = frozenset().union(*self._pins.values()) | self._wanted.keys()
        idle = [s for s in self._slots.values() if s.present and s.diff_id not in held]
        idle.sort(key=lambda slot: slot.used)
        limit = self._idle_limit if keep is None else keep
        if excess := idle[: max(0, len(idle) - limit)]:
            for slot in excess:
                slot.present = False
                slot.settled.clear()
            await self._shielded(self._give_back(excess))

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """No layer comes or goes meanwhile: none is half-way, and later ones wait."""
        self._moving.clear()
        try:
            if self._tasks:
                await asyncio.wait(set(self._tasks))
            yield
        finally:
            self._moving.set()

    async def adopt(self) -> None:
        """Learn what is plugged from QEMU and the guest; undo what stopped half-way.

        Raises:
            LinkError, MachineError: as the calls that failed.
        """
        listed = await self._call("layers.list", {}, 30.0)
        nodes = await self._plugged_nodes()
        mounted = {
            layer["lun"]: layer["diff_id"]
            for layer in listed["layers"]
            if layer["lun"] in nodes and layer["serial"] == serial_of(layer["diff_id"])
        }
        self._next_lun = max([listed["highest_lun"], *nodes], default=-1) + 1
        for lun, diff_id in mounted.items():
            slot = _Slot(diff_id, lun, self._clock, present=True)
            slot.settled.set()
            self._slots[diff_id] = slot
        if orphans := sorted(nodes - mounted.keys()):
            logger.info("unplugging layers that were left half-way: LUNs %s", orphans)
            gone = await self._call("layers.detach", {"luns": orphans}, _ATTACH_TIMEOUT)
            await self._unplug([lun for lun in orphans if lun in gone["detached"]])

    def _touch(self, wanted: Iterable[str]) -> bool:
        """Mark as just used; True when all are there."""
        self._clock += 1
        slots = [self._slots.get(diff_id) for diff_id in wanted]
        for slot in slots:
            if slot is not None:
                slot.used = self._clock
        return all(slot is not None and slot.present for slot in slots)

    def _reserve(self, disks: Sequence[LayerDisk]) -> list[tuple[_Slot, LayerDisk]]:
        if self._next_lun + len(disks) > HIGHEST_LUN + 1:
            raise MachineError(
                f"all {HIGHEST_LUN + 1} disk numbers of this boot are used up",
                hint="restart the machine: wherry machine stop, then start",
            )
        reserved = []
        for disk in disks:
            slot = _Slot(disk.diff_id, self._next_lun, self._clock, present=False)
            self._next_lun += 1
            self._slots[disk.diff_id] = slot
            reserved.append((slot, disk))
        return reserved

    async def _plug(self, reserved: Sequence[tuple[_Slot, LayerDisk]]) -> None:
        arrived: set[int] = set()
        try:
            await self._plug_devices(reserved)
            arrived = await self._mount(reserved)
        finally:
            for slot, _ in reserved:
                slot.present = slot.lun in arrived
                if not slot.present:
                    del self._slots[slot.diff_id]
                slot.settled.set()

    async def _plug_devices(self, reserved: Sequence[tuple[_Slot, LayerDisk]]) -> None:
        """All commands go out at once; QEMU runs them in order."""
        commands = []
        nodes = [_node(slot.lun, disk) for slot, disk in reserved]
        for (slot, disk), node in zip(reserved, nodes, strict=True):
            commands.append(self._qmp.execute("blockdev-add", node))
            commands.append(self._qmp.execute("device_add", _device(slot.lun, disk)))
        results = await asyncio.gather(*commands, return_exceptions=True)
        errors = [result if isinstance(result, BaseException) else None for result in results]
        first = next((index for index, error in enumerate(errors) if error is not None), None)
        if first is None:
            return
        outcomes = list(
            zip((slot.lun for slot, _ in reserved), errors[::2], errors[1::2], strict=True)
        )
        await self._undo([lun for lun, _, device in outcomes if device is None])
        await self._delete_nodes([lun for lun, added, device in outcomes if device and not added])
        disk = reserved[first // 2][1]
        raise MachineError(f"cannot plug layer {disk.diff_id} ({disk.path}): {errors[first]}")

    async def _mount(self, reserved: Sequence[tuple[_Slot, LayerDisk]]) -> set[int]:
        """Returns the LUNs; raises MachineError when one is not mounted, with the rest kept."""
        layers = [
            {
                "diff_id": disk.diff_id,
                "lun": slot.lun,
                "serial": disk.serial,
                "uuid": disk.uuid.replace("-", "").lower(),
            }
            for slot, disk in reserved
        ]
        try:
            await self._call("layers.attach", {"layers": layers}, _ATTACH_TIMEOUT)
        except LinkError as error:
            await self._undo([slot.lun for slot, _ in reserved])
            raise MachineError(f"the guest did not mount a layer: {error.message}") from error
        return {slot.lun for slot, _ in reserved}

    async def _undo(self, luns: list[int]) -> None:
        if not luns:
            return
        try:
            answer = await self._call("layers.detach", {"luns": luns}, _ATTACH_TIMEOUT)
            await self._unplug([lun for lun in luns if lun in answer["detached"]])
        except (LinkError, MachineError) as error:  # then `adopt` of a later engine undoes it
            logger.warning("LUNs %s stay plugged: %s", luns, error)

    async def _give_back(self, slots: Sequence[_Slot]) -> None:
        gone: set[int] = set()
        try:
            luns = [slot.lun for slot in slots]
            answer = await self._call("layers.detach", {"luns": luns}, _ATTACH_TIMEOUT)
            gone = set(answer["detached"]) & set(luns)
            await self._unplug(sorted(gone))
        finally:
            for slot in slots:
                if slot.lun in gone:
                    del self._slots[slot.diff_id]
                else:  # busy: it is in use, so it is not the least recently used
                    slot.present = True
                    slot.used = self._clock
                slot.settled.set()

    async def _unplug(self, luns: Sequence[int]) -> None:
        """Remove devices that the guest has let go of, then their block nodes."""
        if not luns:
            return
        waiting = {_device_id(lun): asyncio.Event() for lun in luns}

        def deleted(name: str, data: Mapping[str, Any]) -> None:
            if name == "DEVICE_DELETED" and (event := waiting.get(str(data.get("device")))):
                event.set()

        self._qmp.on_event(deleted)
        try:
            async with asyncio.timeout(_UNPLUG_TIMEOUT):
                deletions = (self._qmp.execute("device_del", {"id": id}) for id in waiting)
                await asyncio.gather(*deletions)
                for event in waiting.values():
                    await event.wait()
        except TimeoutError as error:
            raise MachineError(f"QEMU did not unplug within {_UNPLUG_TIMEOUT:.0f} s") from error
        finally:
            self._qmp.remove_handler(deleted)
        await self._delete_nodes(luns)

    async def _delete_nodes(self, luns: Sequence[int]) -> None:
        await asyncio.gather(
            *(self._qmp.execute("blockdev-del", {"node-name": _node_name(lun)}) for lun in luns)
        )

    async def _plugged_nodes(self) -> set[int]:
        nodes = await self._qmp.execute("query-named-block-nodes", {"flat": True})
        matches = (_NODE.fullmatch(node.get("node-name", "")) for node in nodes)
        return {int(match[1]) for match in matches if match}

    async def _shielded(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Once begun it is finished, even when its caller is cancelled: no LUN is left half-way."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)


async def plugged_layers(qmp: QmpPort) -> list[tuple[int, str, str]]:
    """(LUN, serial number, file) of each layer that QEMU has, whoever plugged it.

    Raises:
        MachineError: QEMU does not say.
    """
    nodes = await qmp.execute("query-named-block-nodes", {"flat": True})
    files = {str(node.get("node-name")): str(node.get("file")) for node in nodes}
    children = await qmp.execute("qom-list", {"path": _PERIPHERAL})
    found = []
    for child in children:
        if (match := _DEVICE.fullmatch(str(child.get("name")))) is None:
            continue
        lun = int(match[1])
        path = {"path": f"{_PERIPHERAL}/{_device_id(lun)}", "property": "serial"}
        file = files.get(_node_name(lun))
        if file is None:
            raise MachineError(f"QEMU has a disk {_device_id(lun)} without a file")
        found.append((lun, str(await qmp.execute("qom-get", path)), file))
    return sorted(found)


async def plug_again(qmp: QmpPort, layers: Iterable[tuple[int, str, str]]) -> None:
    """Plug layers at the addresses that they had, into a guest that does not run yet.

    Args:
        layers: as of `plugged_layers`.

    Raises:
        MachineError: a file is not there any more.
    """
    commands = []
    for lun, serial, file in layers:
        disk = LayerDisk(serial, Path(file), "")
        commands.append(qmp.execute("blockdev-add", _node(lun, disk)))
        commands.append(qmp.execute("device_add", _device(lun, disk)))
    await asyncio.gather(*commands)


def _node(lun: int, disk: LayerDisk) -> dict[str, object]:
    """Never probed: an image's bytes do not decide how the host reads them."""
    return {
        "driver": "raw",
        "node-name": _node_name(lun),
        "read-only": True,
        "file": {
            "driver": "file",
            "filename": os.fspath(for_programs(disk.path.absolute())),
            "read-only": True,
        },
    }


def _device(lun: int, disk: LayerDisk) -> dict[str, object]:
    return {
        "driver": "scsi-hd",
        "id": _device_id(lun),
        "bus": LAYER_BUS,
        "channel": 0,
        "scsi-id": 0,
        "lun": lun,
        "drive": _node_name(lun),
        "serial": disk.serial,
        "device_id": disk.serial[:_SCSI_ID_LENGTH],
    }


def _node_name(lun: int) -> str:
    return f"layer-{lun}"


def _device_id(lun: int) -> str:
    return f"lun-{lun}"
