"""`localhost/busybox` by platform, with a real image store: each machine has its own, others on
request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_fakes import FakeAgent, FakeMachine, open_engine
from vmimage_samples import BUSYBOX, tar

from wherry.engine.images import BUILTIN, Images
from wherry.errors import ImageNotFound
from wherry.images.platform import Platform
from wherry.images.store import ImageStore
from wherry.paths import Home
from wherry.settings import Settings
from wherry_image.busybox import write_layout

Scene = Callable[[Images], Coroutine[Any, Any, None]]


@pytest.fixture
def layouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """The layout of an architecture, as the VM image and the package alone give it."""

    def layout(architecture: str, *_: object) -> Path:
        directory = tmp_path / f"layout-{architecture}"
        if not directory.exists():
            directory.mkdir()
            write_layout(directory, BUSYBOX + architecture.encode(), architecture, "1.37", 0)
        return directory

    monkeypatch.setattr("wherry.engine.engine.builtin_layout", layout)
    return layout


def play(home: Path, layouts: Callable[[str], Path], architecture: str, scene: Scene) -> None:
    async def act() -> None:
        machine = FakeMachine(FakeAgent(), busybox=layouts(architecture))
        machine.config = replace(machine.config, arch=architecture)
        platform = Platform("linux", architecture)
        store = ImageStore(Home(home), Settings(), platform=platform)
        with closing(store):
            engine = await open_engine(home, machine, store)  # type: ignore[arg-type]  # a real one
            try:
                await scene(engine.images)
            finally:
                await engine.aclose()

    asyncio.run(act())


def test_each_platform_is_there_on_request(tmp_path: Path, layouts: Callable[[str], Path]) -> None:
    async def scene(images: Images) -> None:
        native = await images.resolve(BUILTIN)
        foreign = await images.resolve(BUILTIN, "linux/arm64")
        assert (native.architecture, foreign.architecture) == ("amd64", "arm64")
        assert (await images.resolve("localhost/busybox")).id == native.id
        assert (await images.resolve(BUILTIN, "linux/amd64")).id == native.id
        assert (await images.pull(BUILTIN, "linux/arm64")).id == foreign.id

    play(tmp_path / "home", layouts, "amd64", scene)


def test_machines_that_share_a_store_have_their_own_in_turn(
    tmp_path: Path, layouts: Callable[[str], Path]
) -> None:
    async def native(images: Images) -> None:
        found.append((await images.resolve(BUILTIN)).architecture)

    found: list[str] = []
    for architecture in ("amd64", "arm64", "amd64"):
        play(tmp_path / "home", layouts, architecture, native)
    assert found == ["amd64", "arm64", "amd64"]


def test_an_image_that_was_given_the_name_is_left_alone(
    tmp_path: Path, layouts: Callable[[str], Path]
) -> None:
    async def scene(images: Images) -> None:
        store = images._store
        mine = store.archives.import_rootfs(
            iter([tar({"/bin/sh": b"mine"})]), name=BUILTIN, platform="linux/arm64"
        )
        assert (await images.resolve(BUILTIN)).id == mine.id
        with pytest.raises(ImageNotFound, match="wanted linux/amd64, actual: linux/arm64"):
            await images.resolve(BUILTIN, "linux/amd64")

    play(tmp_path / "home", layouts, "amd64", scene)


def test_a_platform_that_nobody_makes_it_for_is_said(
    tmp_path: Path, layouts: Callable[[str], Path]
) -> None:
    async def scene(images: Images) -> None:
        with pytest.raises(ImageNotFound, match="is not there for linux/s390x") as caught:
            await images.resolve(BUILTIN, "linux/s390x")
        assert caught.value.hint == "it is made for linux/amd64, linux/arm64"

    play(tmp_path / "home", layouts, "amd64", scene)
