"""Layers: EROFS disks behind virtio-scsi LUNs, checked, mounted and given back.

Rules: the host names the address, the device proves its identity (serial and UUID, read afresh)
before it is mounted; what fails the proof is deleted, so that the host may unplug it. Unplug is
driven from here: umount, make sure that no overlay in another mount namespace still uses it, delete
the device, say so. A layer that a container holds (from start to exit) is busy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from wherry_guest.agent.children import sleep
from wherry_guest.agent.kernel import write_atomically
from wherry_guest.agent.scsi import ScsiHost
from wherry_guest.agent.tasks import Promise
from wherry_guest.core.syscalls import MS_NOATIME, MS_NODEV, MS_NOSUID, MS_RDONLY, Kernel
from wherry_guest.loop import Loop

APPEAR_TIMEOUT: Final = 5.0
"""Seconds from a scan to the block device; the kernel probes disks asynchronously."""

RELEASE_TIMEOUT: Final = 1.0
"""Seconds that an ended container's mount namespace may take to let go of its lowers."""

_MOUNT_FLAGS: Final = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOATIME


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as the host names it. `uuid`: 32 hex digits, no dashes."""

    diff_id: str
    lun: int
    serial: str
    uuid: str


class LayerError(Exception):
    """A layer is not there, or not what the host said; the message names it and what differed."""


class Layers:
    """The LUNs of this boot; survives an agent through `layers.json`.

    Args:
        directory: where the mount points `l/<lun>` and the state are (/run/wherry).
        devices: where block devices are.
        find_host: finds the virtio-scsi host, at the first call that needs it.
    """

    def __init__(
        self,
        loop: Loop,
        kernel: Kernel,
        directory: Path,
        devices: Path = Path("/dev"),
        find_host: Callable[[], ScsiHost | None] = ScsiHost.find,
    ) -> None:
        self._loop = loop
        self._kernel = kernel
        self._mounts = directory / "l"
        self._state = directory / "layers.json"
        self._devices = devices
        self._find_host = find_host
        self._host: ScsiHost | None = None
        self._attached: dict[int, Layer] = {}
        self._attaching: dict[int, Promise[None]] = {}
        self._holders: dict[str, frozenset[int]] = {}
        self._highest = -1
        self._load()

    @property
    def highest_lun(self) -> int:
        """The highest LUN attached in this boot, -1 when none: numbers up to it are used up."""
        return self._highest

    def all(self) -> list[dict[str, Any]]:
        """The attached layers as JSON objects, by LUN."""
        return [asdict(self._attached[lun]) for lun in sorted(self._attached)]

    async def attach(self, layers: Sequence[Layer]) -> None:
        """Mount the layers; those that are mounted already are left alone.

        Raises:
            LayerError: for the first that failed; the others are mounted all the same.
        """
        host = self._scsi_host()
        wanted = [layer for layer in layers if self._attached.get(layer.lun) != layer]
        for layer in wanted:
            if layer.lun in self._attached:
                raise LayerError(f"LUN {layer.lun} is {self._attached[layer.lun].diff_id} already")
            if layer.lun not in self._attaching and host.disk(layer.lun) is None:
                host.scan(layer.lun)
        first: LayerError | None = None
        for layer in wanted:
            try:
                await self._attach_one(host, layer)
            except LayerError as error:
                first = first or error
        if wanted:
            self._save()
        if first is not None:
            raise first

    async def detach(self, luns: Iterable[int]) -> tuple[list[int], list[int]]:
        """Unmount and delete. Returns (gone, busy); a LUN that is not there counts as gone."""
        gone: list[int] = []
        busy: list[int] = []
        for lun in luns:
            (gone if await self._detach_one(lun) else busy).append(lun)
        self._save()
        return gone, busy

    def hold(self, holder: str, diff_ids: Sequence[str]) -> tuple[str, ...]:
        """Pin layers for a container.

        Args:
            diff_ids: lowest first; one that stands twice keeps its topmost place.

        Returns:
            The mount points' names below `l/`, topmost first: overlay's order.

        Raises:
            LayerError: one is not attached.
        """
        by_diff_id = {layer.diff_id: layer.lun for layer in self._attached.values()}
        luns: dict[int, None] = {}
        for diff_id in reversed(diff_ids):
            if diff_id not in by_diff_id:
                raise LayerError(f"layer {diff_id} is not attached")
            luns.setdefault(by_diff_id[diff_id])
        self._holders[holder] = frozenset(luns)
        return tuple(str(lun) for lun in luns)

    def hold_again(self, holder: str, lowerdirs: Iterable[str]) -> None:
        """After a restart of the agent: what `hold` returned is still in use."""
        self._holders[holder] = frozenset(int(name) for name in lowerdirs)

    def release(self, holder: str) -> None:
        """The container has exited."""
        self._holders.pop(holder, None)

    def unmount_all(self) -> None:
        """At shutdown; what is busy stays, it is read-only."""
        for lun in self._attached:
            try:
                self._kernel.umount(str(self._mounts / str(lun)))
            except OSError:
                continue

    async def _attach_one(self, host: ScsiHost, layer: Layer) -> None:
        if running := self._attaching.get(layer.lun):
            await running
            if self._attached.get(layer.lun) == layer:
                return
        turn = self._attaching[layer.lun] = Promise()
        try:
            device = await self._appear(host, layer)
            _verify(layer, host, device)
            target = self._mounts / str(layer.lun)
            target.mkdir(parents=True, exist_ok=True)
            self._kernel.mount(str(device), str(target), "erofs", _MOUNT_FLAGS, None)
            self._attached[layer.lun] = layer
            self._highest = max(self._highest, layer.lun)
        except LayerError:
            host.delete(layer.lun)
            raise
        except OSError as error:
            host.delete(layer.lun)
            raise LayerError(f"layer {layer.diff_id} on LUN {layer.lun}: {error}") from error
        finally:
            del self._attaching[layer.lun]
            turn.resolve(None)

    async def _appear(self, host: ScsiHost, layer: Layer) -> Path:
        deadline = self._loop.time() + APPEAR_TIMEOUT
        pause = 0.001
        while (name := host.disk(layer.lun)) is None or not host.is_ready(self._devices / name):
            if self._loop.time() > deadline:
                raise LayerError(f"layer {layer.diff_id}: no disk at LUN {layer.lun}")
            await sleep(self._loop, pause)
            pause = min(2 * pause, 0.02)
        return self._devices / name

    async def _detach_one(self, lun: int) -> bool:
        if lun in self._attaching or any(lun in held for held in self._holders.values()):
            return False
        host = self._scsi_host()
        layer = self._attached.get(lun)
        if layer is not None:
            target = str(self._mounts / str(lun))
            try:
                self._kernel.umount(target)
            except OSError:
                return False
            if not await self._released(host, lun):
                device = str(self._devices / str(host.disk(lun)))
                self._kernel.mount(device, target, "erofs", _MOUNT_FLAGS, None)
                return False
            del self._attached[lun]
            (self._mounts / str(lun)).rmdir()
        deadline = self._loop.time() + APPEAR_TIMEOUT
        while not host.delete(lun):
            if self._loop.time() > deadline:
                raise LayerError(f"the kernel does not let go of LUN {lun}")
            await sleep(self._loop, 0.005)
        return True

    async def _released(self, host: ScsiHost, lun: int) -> bool:
        name = host.disk(lun)
        deadline = self._loop.time() + RELEASE_TIMEOUT
        while name is not None and host.is_claimed(self._devices / name):
            if self._loop.time() > deadline:
                return False
            await sleep(self._loop, 0.01)
        return True

    def _scsi_host(self) -> ScsiHost:
        if self._host is None:
            self._host = self._find_host()
        if self._host is None:
            raise LayerError("this machine has no virtio-scsi host")
        return self._host

    def _load(self) -> None:
        if not self._state.exists():
            return
        state = json.loads(self._state.read_text(encoding="utf-8"))
        self._highest = state["highest_lun"]
        self._attached = {item["lun"]: Layer(**item) for item in state["layers"]}

    def _save(self) -> None:
        state = {"highest_lun": self._highest, "layers": self.all()}
        write_atomically(self._state, json.dumps(state))


def layer_from(values: Mapping[str, Any]) -> Layer:
    """A layer from a call's parameters (checked to be there and of the right type)."""
    layer = Layer(values["diff_id"], values["lun"], values["serial"], values["uuid"])
    return replace(layer, uuid=layer.uuid.replace("-", "").lower())


def _verify(layer: Layer, host: ScsiHost, device: Path) -> None:
    where = f"layer {layer.diff_id} on LUN {layer.lun}"
    serial = host.read_serial(device)
    if serial != layer.serial:
        raise LayerError(f"{where}: the serial is {serial!r}, not {layer.serial!r}")
    uuid = host.read_erofs_uuid(device)
    if uuid != layer.uuid:
        raise LayerError(f"{where}: the EROFS UUID is {uuid or 'not there'}, not {layer.uuid}")
