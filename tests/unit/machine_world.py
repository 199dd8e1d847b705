"""A home with machines on the fake QEMU, for the tests of `Machine`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from machine_fakes import FakeLink, fake_qemu

from wherry.errors import AgentError, LinkError
from wherry.machine import Machine, MachineState
from wherry.machine.accel import AccelChoice
from wherry.machine.boot import Deadlines
from wherry.machine.bringup import Tools
from wherry.machine.find import Qemu
from wherry.osutil import ProcessIdentity, identify, kill, wait_gone
from wherry.paths import Home
from wherry.settings import Settings
from wherry_image import VmImage

GOOD = "lines:wherry: init|wherry: agent"


class World:
    """A home with a VM image, and machines on the fake QEMU."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root / "home")
        self.root = root
        self.qemu = fake_qemu(root)
        self.links: list[FakeLink] = []
        self.machines: list[Machine] = []
        self.link_answers: dict[str, Any] = {"system.shutdown": AgentError("no", code="failed")}
        self.link_error: LinkError | None = None
        self.link_waits = False
        self.image = root / "image"
        self.image.mkdir()
        (self.image / "initrd").write_bytes(b"070701")

    def machine(
        self, scenario: str = GOOD, digest: str = "d1", deadlines: Deadlines | None = None
    ) -> Machine:
        image = VmImage(
            key="k" * 64,
            arch="amd64",
            kernel=self.image / "kernel",
            fast_kernel=self.image / "fast-kernel",
            initrd=self.image / "initrd",
            cmdline=scenario,
            kernel_version="6.12",
            busybox=self.image,
        )
        tools = Tools(
            find_qemu=lambda arch, configured: self.qemu,
            choose_accel=self.choose_accel,
            prepare_image=lambda config, home, settings, progress: image,
            agent_cpio=lambda: b"070701agent0",
            agent_digest=lambda: digest,
            open_link=self.open_link,
            deadlines=deadlines or Deadlines(spawned=10, kernel=10, init=10, agent=10),
        )
        settings = Settings(cpus=1, memory_mib=256, disk_gib=1)
        made = Machine("m", self.home, settings, tools=tools)
        self.machines.append(made)
        return made

    def choose_accel(self, qemu: Qemu, requested: str, cache: Path) -> AccelChoice:
        return AccelChoice("tcg", "a note")

    async def open_link(self, path: Path, deadline: float) -> FakeLink:
        if self.link_error is not None:
            raise self.link_error
        if self.link_waits:
            await asyncio.Event().wait()
        _, writer = await asyncio.open_unix_connection(path)
        link = FakeLink(writer)
        link.answers |= self.link_answers
        self.links.append(link)
        return link


class Played(Protocol):
    """A world, as far as `play_in` needs it."""

    home: Home
    machines: list[Machine]


W = TypeVar("W", bound=Played)


def play(root: Path, work: Callable[[World], Awaitable[None]]) -> None:
    """Run `work`; whatever QEMU it leaves is ended."""
    play_in(World(root), work)


def play_in(world: W, work: Callable[[W], Awaitable[None]], seconds: float = 30) -> None:
    """Run `work` in a world; whatever QEMU it leaves is ended."""

    async def main() -> None:
        try:
            async with asyncio.timeout(seconds):
                await work(world)
        finally:
            for machine in world.machines:
                await machine.aclose()
            for record in world.home.root.rglob("qemu.json"):  # aclose() lets them run on
                process = process_in(record)
                kill(process)
                wait_gone(process, 5)

    asyncio.run(main())


def process_in(record: Path) -> ProcessIdentity:
    """The process that a machine's record names."""
    return ProcessIdentity(**json.loads(record.read_bytes())["identity"])


def process_of(machine: Machine) -> ProcessIdentity:
    found = identify(machine.inspect()["pid"])
    assert found is not None
    return found


def reached(machine: Machine, state: MachineState) -> asyncio.Event:
    event = asyncio.Event()
    machine.on_state(lambda new: event.set() if new is state else None)
    return event
