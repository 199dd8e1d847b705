"""Copies of machines, and whose images are held for whom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine_fakes import World, play

from wherry.engine.state import State
from wherry.errors import Conflict, InvalidInput, StorageError
from wherry.machine.disk import create_disk
from wherry.paths import Home

Progress = list[tuple[str, int, int]]


def test_a_copy_has_the_disk_the_containers_and_the_configuration(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.create("box")
        paths = Home(world.home).machine("m")
        create_disk(paths.data_disk, 1 << 30)
        (paths.root / "machine-id").write_text("mine alone")
        await world.engine.cloner.clone("copy", lambda *_: None)
        copy = Home(world.home).machine("copy")
        assert copy.data_disk.read_bytes() == paths.data_disk.read_bytes()
        assert json.loads(copy.config.read_text())["memory_mib"] == 512
        state = State.open(copy.state_db)
        assert [it.id for it in state.containers()] == [container.id]
        state.close()
        assert sorted(path.name for path in copy.root.iterdir()) == [
            "data.qcow2",
            "machine.json",
            "state.db",
        ]
        assert f"container:copy:{container.id}" in world.store.held

    play(tmp_path, scene)


def test_a_machine_that_runs_is_not_copied(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        await world.run("box")
        with pytest.raises(Conflict, match="running"):
            await world.engine.cloner.clone("copy", lambda *_: None)
        assert not Home(world.home).machine("copy").root.exists()

    play(tmp_path, scene)


def test_nothing_is_copied_over_a_machine(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        root = Home(world.home).machine("copy").root
        root.mkdir()
        with pytest.raises(Conflict, match="a machine 'copy' already"):
            await world.engine.cloner.clone("copy", lambda *_: None)
        with pytest.raises(InvalidInput):
            await world.engine.cloner.clone("../copy", lambda *_: None)
        assert list(root.iterdir()) == []

    play(tmp_path, scene)


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr("wherry.engine.cloning.copy_sparse", full)

    async def scene(world: World) -> None:
        home = Home(world.home)
        create_disk(home.machine("m").data_disk, 1 << 30)
        with pytest.raises(StorageError):
            await world.engine.cloner.clone("copy", lambda *_: None)
        assert [path.name for path in home.machines.iterdir()] == ["m"]

    play(tmp_path, scene)


def test_a_removed_machine_holds_no_images(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        container = await world.create("box")
        world.store.held["container:other:x"] = world.store.images[0]
        await world.engine.remove_machine(keep_disk=True)
        assert f"container:m:{container.id}" in world.store.held
        await world.engine.remove_machine(keep_disk=False)
        assert list(world.store.held) == ["container:other:x"]

    play(tmp_path, scene)


def test_a_machine_that_is_being_copied_still_holds_what_it_gets(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        (Home(world.home).machines / ".copy.new").mkdir()
        world.store.held |= {
            "container:copy:x": world.store.images[0],
            "container:nobody:x": world.store.images[0],
        }
        await world.kill_engine()
        assert list(world.store.held) == ["container:copy:x"]

    play(tmp_path, scene)
