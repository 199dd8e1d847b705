"""Snapshots on disk: there whole or not at all; memory goes with one disk and is used once."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from wherry.errors import Conflict, InvalidInput, MachineError, NotFound, StorageError
from wherry.machine.find import Qemu
from wherry.machine.resuming import _usable, give_up
from wherry.machine.rewinding import finish_rewind, prepare_rewind
from wherry.machine.snapshot import (
    IDLE,
    SNAPSHOT,
    Board,
    PluggedLayer,
    Snapshot,
    SnapshotShelf,
    forget_suspension,
    read_snapshot,
    read_suspension,
    suspend,
)
from wherry.paths import Home, MachinePaths

CONFIG: dict[str, Any] = {"cpus": 2, "arch": "amd64"}


@pytest.fixture
def paths(tmp_path: Path) -> MachinePaths:
    it = Home(tmp_path).machine("m")
    it.root.mkdir(parents=True)
    it.data_disk.write_bytes(b"disk now")
    it.state_db.write_bytes(b"rows now")
    return it


def board(layer: Path, **changes: Any) -> Board:
    found = Board(
        arch="amd64",
        accel="tcg",
        qemu=(7, 2),
        machine="pc-q35-7.2",
        cpu="max,la57=off",
        cpus=2,
        memory_mib=1024,
        cmdline="quiet",
        balloon=False,
        host=(),
        layers=(PluggedLayer(3, "a" * 32, str(layer)),),
        image_key="key",
        config=CONFIG,
    )
    return replace(found, **changes)


def saved(paths: MachinePaths, name: str = "one", **changes: Any) -> Snapshot:
    layer = paths.root / "layer.erofs"
    layer.touch()
    shelf = SnapshotShelf(paths)
    draft = shelf.draft(name)
    for file, data in {
        "data.qcow2": b"disk then", "state.db": b"rows then", "state": b"memory",
        "kernel": b"k", "initrd": b"i",
    }.items():  # fmt: skip
        (draft / file).write_bytes(data)
    return shelf.publish(Snapshot(name, draft, 7, board(layer, **changes), 2, 1))


def test_a_snapshot_is_read_back_as_it_was_written(paths: MachinePaths) -> None:
    snapshot = saved(paths)
    assert SnapshotShelf(paths).get("one") == snapshot
    assert [it.name for it in SnapshotShelf(paths).all()] == ["one"]
    facts = snapshot.facts()
    assert (facts["machine_type"], facts["cpu"]) == ("pc-q35-7.2", "max,la57=off")


def test_there_are_no_two_of_a_name(paths: MachinePaths) -> None:
    saved(paths)
    with pytest.raises(Conflict, match="already"):
        SnapshotShelf(paths).draft("one")


@pytest.mark.parametrize("name", ["", "..", "a/b", ".new", "a b", "a:b", "x" * 64])
def test_a_name_that_would_leave_the_directory_is_refused(paths: MachinePaths, name: str) -> None:
    for use in (SnapshotShelf(paths).draft, SnapshotShelf(paths).get, SnapshotShelf(paths).remove):
        with pytest.raises(InvalidInput):
            use(name)


def test_one_that_is_half_there_is_none(paths: MachinePaths) -> None:
    shelf = SnapshotShelf(paths)
    shelf.draft("half").joinpath("state").write_bytes(b"x")
    assert shelf.all() == []
    with pytest.raises(NotFound):
        shelf.get("half")
    shelf.clear_away()
    assert list(paths.snapshots.iterdir()) == []


def test_damage_and_a_newer_format_are_said_so(paths: MachinePaths) -> None:
    snapshot = saved(paths)
    record = snapshot.directory / "snapshot.json"
    data = json.loads(record.read_bytes())
    for text in (json.dumps({**data, "format": 99}), "{", json.dumps({**data, "board": {}})):
        record.write_text(text)
        assert read_snapshot(snapshot.directory) is None
        with pytest.raises(StorageError, match="damaged"):
            SnapshotShelf(paths).get("one")
    SnapshotShelf(paths).remove("one")
    assert SnapshotShelf(paths).all() == []


def test_memory_is_of_no_use_once_the_disk_was_written_to(paths: MachinePaths) -> None:
    snapshot = saved(paths)
    suspend(paths, IDLE, snapshot.directory)
    found = read_suspension(paths)
    assert found is not None and found.directory == snapshot.directory
    paths.data_disk.write_bytes(b"disk later")
    assert read_suspension(paths) is None


def test_forgetting_can_be_repeated(paths: MachinePaths) -> None:
    suspend(paths, IDLE, saved(paths).directory)
    for _ in range(2):
        forget_suspension(paths)
    assert read_suspension(paths) is None


def test_a_rewind_puts_disk_rows_and_memory_in_place(paths: MachinePaths) -> None:
    snapshot = saved(paths)
    paths.state_db.with_name("state.db-wal").write_bytes(b"of the rows that go")
    prepare_rewind(paths, snapshot)
    assert paths.data_disk.read_bytes() == b"disk now"
    assert finish_rewind(paths) == "one"
    assert paths.data_disk.read_bytes() == b"disk then"
    assert paths.state_db.read_bytes() == b"rows then"
    assert not paths.state_db.with_name("state.db-wal").exists()
    found = read_suspension(paths)
    assert found is not None and found.kind == SNAPSHOT
    assert finish_rewind(paths) is None
    assert SnapshotShelf(paths).get("one").disk.read_bytes() == b"disk then"


@pytest.mark.parametrize("moved", [("data.qcow2",), ("data.qcow2", "state.db")])
def test_a_rewind_that_a_crash_broke_off_is_finished(
    paths: MachinePaths, moved: tuple[str, ...]
) -> None:
    prepare_rewind(paths, saved(paths))
    for name in moved:
        (paths.rewind / name).replace(paths.root / name)
    assert finish_rewind(paths) == "one"
    assert paths.data_disk.read_bytes() == b"disk then"
    assert paths.state_db.read_bytes() == b"rows then"
    assert read_suspension(paths) is not None


def test_a_rewind_that_cannot_be_prepared_changes_nothing(paths: MachinePaths) -> None:
    snapshot = saved(paths)
    snapshot.rows.unlink()
    with pytest.raises(StorageError):
        prepare_rewind(paths, snapshot)
    assert finish_rewind(paths) is None
    assert paths.data_disk.read_bytes() == b"disk now"


def test_a_rewind_that_cannot_be_finished_says_how_to_do_without(paths: MachinePaths) -> None:
    prepare_rewind(paths, saved(paths))
    (paths.rewind / "origin.json").write_text("{}")
    with pytest.raises(StorageError, match="cannot be put back") as caught:
        finish_rewind(paths)
    assert str(paths.rewind) in str(caught.value.hint)
    assert paths.data_disk.read_bytes() == b"disk now"


def test_a_snapshot_of_a_disk_alone_has_the_machine_boot(paths: MachinePaths) -> None:
    snapshot = saved(paths)
    shutil.rmtree(snapshot.directory)
    draft = SnapshotShelf(paths).draft("off")
    (draft / "data.qcow2").write_bytes(b"disk then")
    (draft / "state.db").write_bytes(b"rows then")
    off = SnapshotShelf(paths).publish(Snapshot("off", draft, 8, None))
    prepare_rewind(paths, off)
    assert finish_rewind(paths) == "off"
    assert read_suspension(paths) is None


def qemu(*version: int) -> Qemu:
    return Qemu(Path("/usr/bin/qemu"), (version[0], version[1], version[2]), "amd64")


def test_what_fits_is_taken_up(paths: MachinePaths) -> None:
    snapshot = saved(paths)
    suspend(paths, IDLE, snapshot.directory)
    found, _ = _usable(paths, CONFIG, lambda _arch: qemu(7, 2, 19))
    assert found == snapshot


@pytest.mark.parametrize(
    ("version", "changes", "config", "why"),
    [
        ((8, 0, 0), {}, CONFIG, "it is of QEMU 7.2, this is QEMU 8.0"),
        ((7, 2, 1), {"host": ("another",)}, CONFIG, "another processor"),
        ((7, 2, 1), {}, {**CONFIG, "cpus": 4}, "configuration has changed"),
        ((7, 2, 1), {"layers": (PluggedLayer(0, "b", "/gone"),)}, CONFIG, "gone is gone"),
    ],
)
def test_what_does_not_fit_costs_a_boot_and_says_why(
    paths: MachinePaths,
    version: tuple[int, ...],
    changes: dict[str, Any],
    config: dict[str, Any],
    why: str,
) -> None:
    suspend(paths, IDLE, saved(paths, **changes).directory)
    with pytest.raises(MachineError, match=why):
        _usable(paths, config, lambda _arch: qemu(*version))


def test_a_snapshot_is_taken_up_with_its_own_configuration(paths: MachinePaths) -> None:
    suspend(paths, SNAPSHOT, saved(paths).directory)
    found, _ = _usable(paths, {**CONFIG, "cpus": 4}, lambda _arch: qemu(7, 2, 0))
    assert found.board is not None and found.board.cpus == 2


@pytest.mark.parametrize("file", ["state", "kernel", "initrd", "snapshot.json"])
def test_a_missing_file_costs_a_boot(paths: MachinePaths, file: str) -> None:
    snapshot = saved(paths)
    suspend(paths, IDLE, snapshot.directory)
    (snapshot.directory / file).unlink()
    with pytest.raises(MachineError, match=r"missing|incomplete"):
        _usable(paths, CONFIG, lambda _arch: qemu(7, 2, 0))


def test_what_is_not_taken_up_is_forgotten_with_one_line(paths: MachinePaths) -> None:
    suspend(paths, IDLE, saved(paths).directory)
    notices: list[str] = []
    asyncio.run(give_up(paths, "it is of QEMU 7.2", notices.append))
    assert read_suspension(paths) is None
    assert len(notices) == 1 and "QEMU 7.2" in notices[0]


def test_a_board_is_the_same_after_json(paths: MachinePaths) -> None:
    snapshot = saved(paths)
    again = read_snapshot(snapshot.directory)
    assert again is not None and again.board is not None and snapshot.board is not None
    assert asdict(again.board) == asdict(snapshot.board)
