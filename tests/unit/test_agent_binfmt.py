"""Emulators are registered with the kernel: once, whole, and not for what runs by itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from wherry_guest.agent.binfmt import Formats
from wherry_guest.agent.calls import Params
from wherry_guest.agent.layers import LayerError
from wherry_guest.agent.tasks import run
from wherry_guest.channel import CallError
from wherry_guest.loop import Loop

DIFF_ID = "sha256:" + "e" * 64
MAGIC = "7f454c46020101000000000000000000" + "0200b700"


class FakeLayers:
    """One layer is attached, at LUN 3."""

    def __init__(self) -> None:
        self.held: dict[str, list[str]] = {}

    def hold(self, holder: str, diff_ids: list[str]) -> tuple[str, ...]:
        if diff_ids != [DIFF_ID]:
            raise LayerError(f"layer {diff_ids[0]} is not attached")
        self.held[holder] = diff_ids
        return ("3",)


class FakeKernel:
    """Mounts binfmt_misc as a directory with its two files."""

    def __init__(self) -> None:
        self.mounted: list[str] = []

    def mount(self, source: str, target: str, fstype: str, flags: int, data: None) -> None:
        assert (source, fstype) == ("binfmt_misc", "binfmt_misc")
        self.mounted.append(target)
        Path(target).mkdir()
        (Path(target) / "register").write_text("")


class World:
    def __init__(self, directory: Path) -> None:
        self.loop = Loop()
        self.kernel = FakeKernel()
        self.layers = FakeLayers()
        self.run = directory / "run"
        self.misc = directory / "binfmt_misc"
        programs = self.run / "l" / "3" / "usr" / "bin"
        programs.mkdir(parents=True)
        (programs / "qemu-aarch64").write_bytes(b"an emulator")

    def register(self, *formats: dict[str, Any], diff_id: str = DIFF_ID) -> Any:
        made = Formats(self.loop, self.kernel, self.layers, self.run, self.misc)  # type: ignore[arg-type]  # stand-ins
        done = run(made.register(Params({"diff_id": diff_id, "formats": list(formats)})))
        done.when_settled(self.loop.stop)
        if not done.settled:
            self.loop.run()
        return done.result()

    @property
    def told(self) -> str:
        """The kernel's side of the last registration."""
        return (self.misc / "register").read_text()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def arm64(**changes: Any) -> dict[str, Any]:
    fields = {"name": "wherry-arm64", "interpreter": "usr/bin/qemu-aarch64", "magic": MAGIC,
              "mask": "ff" * 20, "probe": ""}  # fmt: skip
    return {**fields, **changes}


def test_a_format_is_registered_with_its_flags(world: World) -> None:
    assert world.register(arm64()) == {"registered": ["wherry-arm64"], "native": []}
    magic = "".join(f"\\x{MAGIC[at : at + 2]}" for at in range(0, 40, 2))
    interpreter = world.run / "l/3/usr/bin/qemu-aarch64"
    mask = "\\xff" * 20
    assert world.told == f":wherry-arm64:M::{magic}:{mask}:{interpreter}:POCF"
    assert world.kernel.mounted == [str(world.misc)]
    assert world.layers.held == {"emulators": [DIFF_ID]}


def test_what_is_registered_already_is_left_alone(world: World) -> None:
    world.register(arm64())
    (world.misc / "register").write_text("")
    interpreter = world.run / "l/3/usr/bin/qemu-aarch64"
    (world.misc / "wherry-arm64").write_text(f"enabled\ninterpreter {interpreter}\nflags: POCF\n")
    assert world.register(arm64())["registered"] == ["wherry-arm64"]
    assert world.told == ""
    assert len(world.kernel.mounted) == 1


def test_an_emulator_of_an_older_layer_is_replaced(world: World) -> None:
    world.register(arm64())
    (world.misc / "register").write_text("")
    (world.misc / "wherry-arm64").write_text("enabled\ninterpreter /run/wherry/l/1/qemu\n")
    world.register(arm64())
    assert (world.misc / "wherry-arm64").read_text() == "-1"
    assert "/l/3/" in world.told


@pytest.mark.skipif(sys.platform != "linux", reason="starts a program, by the kernel's rules")
def test_what_the_processor_runs_by_itself_is_not_emulated(world: World) -> None:
    ends_well, ends_badly = (f"#!/bin/sh\nexit {code}\n".encode().hex() for code in (0, 1))
    assert world.register(arm64(probe=ends_well)) == {"registered": [], "native": ["wherry-arm64"]}
    assert world.told == ""
    assert world.register(arm64(probe=ends_badly))["registered"] == ["wherry-arm64"]
    assert sorted(path.name for path in world.run.iterdir()) == ["l"]


@pytest.mark.skipif(sys.platform != "linux", reason="starts a program, by the kernel's rules")
def test_a_probe_that_the_kernel_does_not_know_means_emulation(world: World) -> None:
    unknown = (b"\x7fELF" + bytes(200)).hex()
    assert world.register(arm64(probe=unknown))["registered"] == ["wherry-arm64"]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../x"},
        {"name": "a:b"},
        {"interpreter": "/usr/bin/qemu"},
        {"interpreter": "usr/../../qemu"},
        {"interpreter": "usr/bin/qe:mu"},
        {"magic": "7f"},
        {"magic": ""},
        {"magic": "xyz"},
        {"interpreter": "usr/bin/qemu-alpha"},
    ],
)
def test_what_cannot_be_registered_is_invalid(world: World, changes: dict[str, str]) -> None:
    with pytest.raises(CallError) as caught:
        world.register(arm64(**changes))
    assert caught.value.code == "invalid"


def test_a_layer_that_is_not_attached_is_a_conflict(world: World) -> None:
    with pytest.raises(CallError) as caught:
        world.register(arm64(), diff_id="sha256:other")
    assert caught.value.code == "conflict"
