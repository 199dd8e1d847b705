"""Starts that restore, on a QEMU that is a Python script: made, used, doubted, given up."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from machine_fakes import FakeLink, fake_qemu
from machine_world import play_in, process_in

from wherry.errors import AgentError, BootFailed, Conflict
from wherry.machine import Machine, MachineState
from wherry.machine.accel import AccelChoice
from wherry.machine.boot import Deadlines
from wherry.machine.bringup import Tools
from wherry.machine.disk import create_disk
from wherry.machine.memoryfile import copy_memory
from wherry.machine.template import Origin, Templates
from wherry.osutil import is_alive, wait_gone
from wherry.paths import Home
from wherry.settings import Settings
from wherry_image import VmImage

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is restored there")


@pytest.fixture
def root() -> Iterator[Path]:
    """A short path: it holds sockets."""
    path = Path(tempfile.mkdtemp(prefix="wt-"))
    yield path
    shutil.rmtree(path)


class World:
    """A home, and machines on the fake QEMU; `progress` hears the phases of all starts."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root / "home")
        self.qemu = fake_qemu(root)
        self.links: list[FakeLink] = []
        self.machines: list[Machine] = []
        self.accel = "tcg"
        self.template = True
        self.phases: list[str] = []
        self.refused: set[int] = set()
        """Set-ups that fail, by number, from 0."""
        self._set_ups = 0
        self.image = root / "image"
        self.image.mkdir()
        (self.image / "initrd").write_bytes(b"070701")

    @property
    def templates(self) -> Templates:
        return Templates(self.home.templates)

    def machine(self, name: str = "m", bake_after: float = 0.0) -> Machine:
        image = VmImage(
            key="k" * 64,
            arch="amd64",
            kernel=self.image / "kernel",
            fast_kernel=self.image / "fast-kernel",
            initrd=self.image / "initrd",
            cmdline="lines:wherry: init|wherry: agent",
            kernel_version="6.12",
            busybox=self.image,
        )
        tools = Tools(
            find_qemu=lambda arch, configured: self.qemu,
            choose_accel=lambda qemu, requested, cache: AccelChoice(self.accel),
            prepare_image=lambda config, home, settings, progress: image,
            agent_cpio=lambda: b"070701agent0",
            agent_digest=lambda: "d1",
            open_link=self.open_link,
            deadlines=Deadlines(spawned=10, kernel=10, init=10, agent=10, restore=10),
            bake_after=bake_after,
        )
        settings = Settings(cpus=1, memory_mib=256, disk_gib=1, template=self.template)
        made = Machine(name, self.home, settings, tools=tools)
        self.machines.append(made)
        return made

    async def open_link(self, path: Path, deadline: float) -> FakeLink:
        async with asyncio.timeout(deadline):
            while True:
                connection = socket.socket(socket.AF_UNIX)
                try:
                    connection.connect(os.fspath(path))
                    break
                except OSError:
                    connection.close()
                    await asyncio.sleep(0.001)  # as the real one does until QEMU is there
        link = FakeLink(connection)
        link.answers |= {
            "system.shutdown": AgentError("no", code="failed"),
            "system.setup": self.set_up,
        }
        self.links.append(link)
        return link

    def set_up(self, params: object) -> object:
        number, self._set_ups = self._set_ups, self._set_ups + 1
        return AgentError("not this time", code="failed") if number in self.refused else {}

    async def started(self, machine: Machine) -> list[str]:
        """Start it and return the phases that it went through."""
        phases: list[str] = []
        await machine.ensure_running(lambda phase, done, total: phases.append(phase))
        return phases

    async def with_template(self) -> Machine:
        """A machine that is off, and whose next start restores."""
        machine = self.machine()
        await machine.ensure_running()
        await machine.until_template()
        await machine.stop()
        [template] = self.templates.all()
        assert template["status"] == "good"
        return machine


def play(root: Path, work: Callable[[World], Awaitable[None]]) -> None:
    """Run `work`; whatever QEMU it leaves is ended."""
    play_in(World(root), work, seconds=40)


def test_the_console_of_a_restored_machine_begins_with_how_it_booted(root: Path) -> None:
    async def work(world: World) -> None:
        machine = await world.with_template()
        assert "restore" in await world.started(machine)
        assert "wherry: init" in world.home.machine("m").console_log.read_text()

    play(root, work)


def test_a_template_is_made_after_a_boot_and_the_next_start_restores_it(root: Path) -> None:
    async def work(world: World) -> None:
        machine = world.machine()
        assert {"kernel", "disk", "ready"} <= set(await world.started(machine))
        await machine.until_template()
        hidden, proof = world.links[1:]
        assert hidden.methods == ["system.prepare"]
        assert proof.methods == ["system.setup"]
        assert hidden.closed
        assert proof.closed
        await machine.stop()
        assert await world.started(machine) == ["spawned", "restore", "disk", "ready"]
        assert machine.notices == []
        [template] = world.templates.all()
        assert template["in_use"]
        names = {path.name for path in world.home.templates.iterdir()}
        assert names == {template["key"], "bake.lock", "lock"}
        await machine.stop()
        assert [it["in_use"] for it in world.templates.all()] == [False]

    play(root, work)


def test_a_template_is_no_ones_in_particular(root: Path) -> None:
    async def work(world: World) -> None:
        await world.with_template()
        other = world.machine(name="other")
        assert "restore" in await world.started(other)
        first, second = world.links[0], world.links[-1]
        identities = [
            (setup["machine_id"], setup["network"]["mac"], setup["entropy"])
            for link in (first, second)
            for method, setup in link.calls
            if method == "system.setup"
        ]
        for ours, theirs in zip(*identities, strict=True):
            assert ours != theirs

    play(root, work)


def test_a_machine_keeps_its_id_and_address(root: Path) -> None:
    async def work(world: World) -> None:
        machine = await world.with_template()
        await machine.ensure_running()
        setups = [dict(link.calls)["system.setup"] for link in (world.links[0], world.links[-1])]
        assert setups[0]["machine_id"] == setups[1]["machine_id"]
        assert setups[0]["network"] == setups[1]["network"]
        assert setups[0]["entropy"] != setups[1]["entropy"]

    play(root, work)


def test_a_start_without_template_boots(root: Path) -> None:
    async def work(world: World) -> None:
        machine = await world.with_template()
        await machine.ensure_running(template=False)
        started = Path(machine.inspect()["directory"], "qemu.json").read_text()
        assert '"-incoming"' not in started

    play(root, work)


def test_with_the_setting_off_nothing_is_saved_or_restored(root: Path) -> None:
    async def work(world: World) -> None:
        await world.with_template()
        world.template = False
        machine = world.machine(name="other")
        assert "restore" not in await world.started(machine)
        await machine.until_template()
        assert len(world.templates.all()) == 1

    play(root, work)


@pytest.mark.parametrize("accel", ["whpx", "hvf"])
def test_where_migration_is_not_possible_a_boot_is_the_normal_way(root: Path, accel: str) -> None:
    async def work(world: World) -> None:
        world.accel = accel
        machine = world.machine()
        await machine.ensure_running()
        await machine.until_template()
        assert not world.home.templates.exists()
        assert machine.notices == []

    play(root, work)


def test_a_damaged_template_costs_a_boot_and_one_line(root: Path) -> None:
    async def work(world: World) -> None:
        machine = await world.with_template()
        [found] = world.home.templates.glob("*/ram")
        os.truncate(found, 4096)
        assert "kernel" in await world.started(machine)
        [notice] = machine.notices
        assert "its memory is damaged" in notice
        await machine.until_template()
        assert [it["status"] for it in world.templates.all()] == ["good"]

    play(root, work)


def test_a_template_that_qemu_refuses_costs_a_boot_and_one_line(root: Path) -> None:
    async def work(world: World) -> None:
        machine = await world.with_template()
        [template] = world.templates.all()
        files = root / "files"
        files.mkdir()
        (files / "state").write_bytes(b"of another QEMU")
        digest = copy_memory(world.home.templates / template["key"] / "ram", files / "ram")
        origin = Origin.of(world.qemu, world.image)
        world.templates.add(template["key"], files, digest, origin)
        assert "kernel" in await world.started(machine)
        [notice] = machine.notices
        assert "QEMU ended, status 1 (phase restore)" in notice
        assert [it["status"] for it in world.templates.all()] == ["bad"]

    play(root, work)


def test_a_proof_that_fails_marks_the_key_and_nothing_is_tried_again(root: Path) -> None:
    async def work(world: World) -> None:
        world.refused = {1}
        machine = world.machine()
        await machine.ensure_running()
        await machine.until_template()
        [template] = world.templates.all()
        assert (template["status"], template["reason"]) == ("bad", "not this time")
        await machine.stop()
        assert "kernel" in await world.started(machine)
        await machine.until_template()
        assert [it["status"] for it in world.templates.all()] == ["bad"]
        assert machine.notices == []

    play(root, work)


def test_a_restored_guest_that_cannot_be_set_up_is_booted_and_told_of(root: Path) -> None:
    async def work(world: World) -> None:
        machine = await world.with_template()
        world.refused = {2}
        phases = await world.started(machine)
        assert phases[:2] == ["spawned", "restore"]
        assert "kernel" in phases
        assert machine.state is MachineState.RUNNING
        [notice] = machine.notices
        assert notice == (
            "the saved machine could not be restored (not this time): it was booted instead"
        )
        assert [it["status"] for it in world.templates.all()] == ["bad"]

    play(root, work)


def test_when_the_boot_fails_too_the_template_is_not_to_blame(root: Path) -> None:
    async def work(world: World) -> None:
        machine = await world.with_template()
        world.refused = {2, 3}
        with pytest.raises(AgentError, match="not this time"):
            await machine.ensure_running()
        assert [it["status"] for it in world.templates.all()] == ["good"]

    play(root, work)


def test_another_qemu_is_another_template(root: Path) -> None:
    async def work(world: World) -> None:
        machine = await world.with_template()
        world.qemu.binary.write_text(world.qemu.binary.read_text() + "# upgraded\n")
        assert "kernel" in await world.started(machine)
        assert machine.notices == []
        await machine.until_template()
        assert [it["status"] for it in world.templates.all()] == ["good"]  # the old one is gone

    play(root, work)


def test_an_engine_that_ends_leaves_no_hidden_machine(root: Path) -> None:
    async def work(world: World) -> None:
        machine = world.machine()
        await machine.ensure_running()
        while len(world.links) < 2:
            await asyncio.sleep(0.001)
        [record] = world.home.templates.glob("*.draft/qemu.json")
        process = process_in(record)
        assert is_alive(process)
        await machine.aclose()
        assert wait_gone(process, 5)
        assert not list(world.home.templates.glob("*.draft"))

    play(root, work)


def test_what_a_killed_engine_left_is_cleared_away(root: Path) -> None:
    async def work(world: World) -> None:
        machine = await world.with_template()
        await machine.ensure_running()
        record = Path(machine.inspect()["directory"], "qemu.json")
        process = process_in(record)
        draft = world.home.template_draft("b" * 24)
        draft.root.mkdir()
        shutil.move(record, draft.qemu_record)
        [good] = world.templates.all()
        shutil.rmtree(world.home.templates / good["key"])
        other = world.machine(name="other")
        await other.ensure_running()
        await other.until_template()
        assert wait_gone(process, 5)
        assert not draft.root.exists()

    play(root, work)


def test_a_restored_machine_is_taken_over_by_a_later_engine(root: Path) -> None:
    async def work(world: World) -> None:
        first = await world.with_template()
        await first.ensure_running()
        pid = first.inspect()["pid"]
        await first.aclose()
        second = world.machine()
        assert await second.adopt()
        assert second.inspect()["pid"] == pid

    play(root, work)


def test_a_qemu_that_does_not_start_is_no_fault_of_the_template(root: Path) -> None:
    async def work(world: World) -> None:
        machine = await world.with_template()
        world.qemu.binary.chmod(0o644)
        with pytest.raises(BootFailed):
            await machine.ensure_running()
        assert [it["status"] for it in world.templates.all()] == ["good"]

    play(root, work)


def test_a_qemu_that_does_not_start_for_the_proof_marks_no_key(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(world: World) -> None:
        def then_qemu_breaks(path: Path, size: int) -> None:
            create_disk(path, size)
            world.qemu.binary.chmod(0o644)

        monkeypatch.setattr("wherry.machine.bake.create_disk", then_qemu_breaks)
        machine = world.machine()
        await machine.ensure_running()
        await machine.until_template()
        assert world.templates.all() == []

    play(root, work)


def test_a_template_can_be_asked_for_and_is_made_at_once(root: Path) -> None:
    async def work(world: World) -> None:
        machine = world.machine(bake_after=3600)
        with pytest.raises(Conflict, match="never started"):
            await machine.save_template()
        await machine.ensure_running()
        first = await machine.save_template()
        assert first["status"] == "good"
        assert await machine.save_template() == first
        await machine.stop()
        assert "restore" in await world.started(machine)

    play(root, work)
