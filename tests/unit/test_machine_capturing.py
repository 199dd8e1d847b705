"""A running machine is saved in order, and goes on whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from wherry.errors import Conflict, MachineError, StorageError
from wherry.machine import capturing
from wherry.machine.boot import RunningQemu
from wherry.machine.layers import LayerPool, plug_again, plugged_layers
from wherry.machine.pausing import Pauses
from wherry.machine.record import QemuRecord
from wherry.machine.snapshot import Board
from wherry.osutil import ProcessIdentity

SERIAL = "a" * 32
ARGV = (
    "qemu", "-M", "q35,vmport=off", "-cpu", "max,la57=off", "-smp", "2", "-m", "1024",
    "-kernel", "/k", "-initrd", "/i", "-append", "quiet", "-device",
    "virtio-balloon-pci,free-page-reporting=on",
)  # fmt: skip


class Qemu:
    """Answers as QEMU does, and remembers in which order it was asked."""

    version = (7, 2)

    def __init__(self, **chardevs: str) -> None:
        self.log: list[str] = []
        self.sent: list[tuple[str, Mapping[str, object]]] = []
        self.labels = ["qmp", "agent", *chardevs]
        self.file: str | None = "/layers/a.erofs"

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float = 30.0
    ) -> Any:
        values = dict(arguments or {})
        self.log.append(command)
        self.sent.append((command, values))
        if command == "query-chardev":
            return [{"label": label} for label in self.labels]
        if command == "qom-get":
            return SERIAL if values["property"] == "serial" else "pc-q35-7.2-machine"
        if command == "qom-list":
            return [{"name": "lun-7"}, {"name": "type"}, {"name": "data-disk"}]
        if command == "query-named-block-nodes":
            return [{"node-name": "layer-7", "file": self.file}] if self.file else []
        return {}


class Still:
    """Layers and pauses that are held, and when."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        self._log.append("held")
        yield
        self._log.append("free")

    held = still


def capture(
    qemu: Qemu,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    accel: str = "tcg",
    go_on: bool = True,
    fault: Exception | None = None,
) -> Board:
    async def save_state(_qmp: object, file: Path, *, without_memory: bool) -> None:
        assert not without_memory
        qemu.log.append("save")
        if fault is not None:
            raise fault
        file.write_bytes(b"state")

    async def beside() -> None:
        qemu.log.append("copy")

    def link(_source: Path, target: Path) -> None:
        target.write_bytes(b"kernel")

    monkeypatch.setattr(capturing, "save_state", save_state)
    monkeypatch.setattr(capturing, "link_or_copy", link)
    record = QemuRecord(
        identity=ProcessIdentity(1, "1"), boot="b", image_key="key", agent_digest="d",
        accel=accel, started_ns=1, argv=ARGV, ready=True, config={"arch": "amd64"},
    )  # fmt: skip
    vm = RunningQemu(record=record, qmp=cast("Any", qemu), console=None, child=None)
    still = Still(qemu.log)
    pool, pauses = cast("LayerPool", still), cast("Pauses", still)
    return asyncio.run(capturing.capture(vm, pool, pauses, directory, beside, go_on=go_on))


def test_the_guest_stands_still_while_memory_and_disk_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu = Qemu()
    board = capture(qemu, tmp_path, monkeypatch)
    steps = [it for it in qemu.log if it in ("held", "stop", "save", "copy", "cont", "free")]
    assert steps == ["held", "held", "stop", "save", "copy", "cont", "free", "free"]
    assert (board.machine, board.cpu, board.cpus) == ("pc-q35-7.2", "max,la57=off", 2)
    assert board.balloon and board.qemu == (7, 2)
    assert [(it.lun, it.serial, it.path) for it in board.layers] == [(7, SERIAL, "/layers/a.erofs")]
    assert {it.name for it in tmp_path.iterdir()} == {"state", "kernel", "initrd"}


@pytest.mark.parametrize("go_on", [True, False])
def test_it_goes_on_when_it_cannot_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, go_on: bool
) -> None:
    for fault in (MachineError("QEMU refused"), StorageError("the disk is full")):
        qemu = Qemu()
        with pytest.raises(type(fault)):
            capture(qemu, tmp_path, monkeypatch, fault=fault, go_on=go_on)
        assert qemu.log[-1] == "cont"


def test_one_that_is_put_aside_stays_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu = Qemu()
    capture(qemu, tmp_path, monkeypatch, go_on=False)
    assert "cont" not in qemu.log


@pytest.mark.parametrize(("label", "accel"), [("vhost", "tcg"), ("ssh", "tcg"), ("", "hvf")])
def test_what_cannot_be_saved_is_refused_before_it_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str, accel: str
) -> None:
    qemu = Qemu(**({label: ""} if label else {}))
    with pytest.raises(Conflict, match="cannot be saved"):
        capture(qemu, tmp_path, monkeypatch, accel=accel)
    assert "stop" not in qemu.log


def test_layers_are_plugged_again_where_they_were() -> None:
    async def scene() -> None:
        qemu = Qemu()
        found = await plugged_layers(cast("Any", qemu))
        qemu.sent.clear()
        await plug_again(cast("Any", qemu), found)
        node, device = (values for _, values in qemu.sent)
        assert node["node-name"] == device["drive"] == "layer-7"
        assert node["read-only"] is True
        assert (device["lun"], device["serial"], device["id"]) == (7, SERIAL, "lun-7")

    asyncio.run(scene())


def test_a_disk_without_a_file_is_not_saved() -> None:
    qemu = Qemu()
    qemu.file = None
    with pytest.raises(MachineError, match="without a file"):
        asyncio.run(plugged_layers(cast("Any", qemu)))
