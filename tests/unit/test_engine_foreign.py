"""Images of other platforms than the machine's: warnings, emulators when needed, crashes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_fakes import FakeMachine, World, image, open_engine, play

from wherry.build.emulators import EmulatorLayer, EmulatorSource
from wherry.engine.facts import GuestFacts
from wherry.engine.foreign import HOLDER
from wherry.engine.model import Container
from wherry.errors import ImageBuildError, MachineError

DIFF_ID = "sha256:" + "e" * 64
ARM64: dict[str, Any] = {"architecture": "arm64"}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The architectures whose emulators' layer was asked for; nothing is fetched."""
    asked: list[str] = []

    def make(source: EmulatorSource, progress: Callable[[str, int, int], None]) -> EmulatorLayer:
        asked.append(source.arch)
        progress("unpack", 1, 1)
        return EmulatorLayer(DIFF_ID, Path("/emulators.erofs"))

    monkeypatch.setattr(EmulatorSource, "make", make)
    return asked


def have(world: World, **fields: Any) -> None:
    world.store.images = [replace(image(), **fields)]


def registrations(world: World) -> list[dict[str, Any]]:
    return [params for method, params in world.agent.calls if method == "emulators.register"]


def mismatch_of(world: World, container: Container, variant: str = "") -> str | None:
    world.engine._guest_facts = GuestFacts(arch="amd64", variant=variant)
    return world.engine.emulation.mismatch(container)


def test_a_foreign_container_gets_emulators_before_it_starts(
    tmp_path: Path, made: list[str]
) -> None:
    async def scene(world: World) -> None:
        have(world, **ARM64)
        container = await world.run("box")
        assert container.platform == "linux/arm64"
        assert made == ["amd64"]
        assert world.machine.pins[HOLDER] == [DIFF_ID]
        assert DIFF_ID in world.machine.attached
        (params,) = registrations(world)
        assert params["diff_id"] == DIFF_ID
        formats = {it["name"]: it for it in params["formats"]}
        assert formats["wherry-arm64"]["interpreter"] == "usr/bin/qemu-aarch64"
        assert formats["wherry-arm64"]["magic"].startswith("7f454c46020101")
        assert "wherry-amd64" not in formats  # the machine's own
        assert formats["wherry-386"]["probe"]  # perhaps it is the machine's own too
        methods = [method for method, _ in world.agent.calls]
        assert methods.index("emulators.register") < methods.index("container.start")
        started = next(it for method, it in world.agent.calls if method == "container.start")
        assert started["emulated"] is True

    play(tmp_path, scene)


def test_a_native_container_needs_none(tmp_path: Path, made: list[str]) -> None:
    async def scene(world: World) -> None:
        await world.run("box")
        assert (made, registrations(world)) == ([], [])

    play(tmp_path, scene)


def test_emulators_are_registered_once_in_a_boot(tmp_path: Path, made: list[str]) -> None:
    async def scene(world: World) -> None:
        have(world, **ARM64)
        await world.machine.ensure_running()
        first, second = await world.create("one1"), await world.create("two2")
        containers = world.engine.containers
        await asyncio.gather(containers.start(first.id), containers.start(second.id))
        assert len(registrations(world)) == 1
        world.machine.die()
        await containers.start(first.id)
        assert (world.machine.boots, len(registrations(world))) == (2, 2)

    play(tmp_path, scene)


def test_a_start_without_its_emulators_says_why_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(source: EmulatorSource, progress: object) -> EmulatorLayer:
        if outages:
            raise outages.pop()
        return EmulatorLayer(DIFF_ID, Path("/emulators.erofs"))

    monkeypatch.setattr(EmulatorSource, "make", make)
    outages = [ImageBuildError("cannot download qemu-user: no route")]

    async def scene(world: World) -> None:
        have(world, **ARM64)
        container = await world.create("box")
        with pytest.raises(ImageBuildError, match="no route"):
            await world.engine.containers.start(container.id)
        await world.engine.containers.start(container.id)
        assert world.engine.containers.get("box").running

    play(tmp_path, scene)


def test_an_architecture_that_nothing_emulates_is_said(tmp_path: Path, made: list[str]) -> None:
    async def scene(world: World) -> None:
        have(world, architecture="mips64le")
        container = await world.create("box")
        with pytest.raises(MachineError, match="no emulator for programs of linux/mips64le") as it:
            await world.engine.containers.start(container.id)
        assert "386, amd64, arm, arm64" in (it.value.hint or "")

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("fields", "variant", "expected"),
    [
        (ARM64, "v3", "(linux/arm64) does not match the detected host platform (linux/amd64/v3)"),
        (ARM64, "", "(linux/arm64) does not match the detected host platform (linux/amd64)"),
        ({"architecture": "arm", "variant": "v7"}, "", "(linux/arm/v7) does not match"),
        ({"architecture": "amd64", "variant": "v4"}, "v3", "(linux/amd64/v4) does not match"),
        ({"architecture": "amd64", "variant": "v2"}, "v3", None),
        ({"architecture": "386"}, "v3", None),
    ],
)
def test_the_warning_is_dockers(
    tmp_path: Path, fields: dict[str, Any], variant: str, expected: str | None
) -> None:
    async def scene(world: World) -> None:
        have(world, **fields)
        warning = mismatch_of(world, await world.create("box"), variant)
        if expected is None:
            assert warning is None
        else:
            assert warning is not None
            assert warning.startswith("The requested image's platform (")
            assert expected in warning
            assert warning.endswith("and no specific platform was requested")

    play(tmp_path, scene)


def test_on_an_arm64_machine_amd64_is_foreign(tmp_path: Path, made: list[str]) -> None:
    async def scene(world: World) -> None:
        machine = FakeMachine(world.agent)
        machine.config = replace(machine.config, arch="arm64")
        engine = await open_engine(tmp_path / "other", machine, world.store)
        try:
            container = await engine.containers.create("box", {"Image": "busybox"}, {})
            assert "(linux/arm64/v8)" in (engine.emulation.mismatch(container) or "")
            await engine.containers.start(container.id)
            assert made == ["arm64"]
            (params,) = registrations(world)
            assert {it["name"] for it in params["formats"]} >= {"wherry-amd64", "wherry-arm"}
        finally:
            await engine.aclose()

    play(tmp_path, scene)


def test_a_crash_names_the_machine_that_would_not_emulate(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        have(world, **ARM64)
        container = await world.create("box")
        said = world.engine.emulation.complaint(container, 139)
        assert "its emulation of arm64, crashed (SIGSEGV)" in said
        assert said.endswith("wherry machine create --arch arm64")
        assert world.engine.emulation.complaint(container, 137) == ""
        have(world, architecture="riscv64")
        other = await world.create("other")
        assert "machine create" not in world.engine.emulation.complaint(other, 132)
        have(world)
        native = await world.create("native")
        assert world.engine.emulation.complaint(native, 139) == ""

    play(tmp_path, scene)
