"""A machine on a QEMU that is a Python script: phases, states, adoption, ends."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machine_world import GOOD, World, play, process_of, reached

from wherry.errors import AgentError, BootFailed, Conflict, LinkClosed, LinkError, MachineError
from wherry.machine import LayerDisk, MachineState
from wherry.machine.boot import Deadlines
from wherry.osutil import is_alive, kill, wait_gone

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="QEMU's sockets are Unix's here")


@pytest.fixture
def root() -> Iterator[Path]:
    """A short path: it holds sockets."""
    path = Path(tempfile.mkdtemp(prefix="wm-"))
    yield path
    shutil.rmtree(path)


def test_a_machine_starts_and_its_guest_is_set_up(root: Path) -> None:
    async def work(world: World) -> None:
        machine = world.machine()
        phases: list[str] = []
        states: list[MachineState] = []
        machine.on_state(states.append)
        link = await machine.ensure_running(lambda phase, done, total: phases.append(phase))
        assert machine.link is link is world.links[0]
        assert states == [MachineState.STARTING, MachineState.RUNNING]
        assert phases[:2] == ["spawned", "kernel"]
        setup = dict(world.links[0].calls)["system.setup"]
        assert setup["disk_serial"] == "wherry-data"
        assert len(bytes.fromhex(setup["entropy"])) >= 64
        assert (setup["hostname"], setup["network"]["address"]) == ("m", "10.0.2.15/24")
        facts = machine.inspect()
        assert (facts["state"], facts["accel"], facts["cpus"]) == ("running", "tcg", 1)
        assert facts["notices"] == ["a note"]
        assert facts["kernel_file"] == str(world.image / "fast-kernel")
        record = json.loads((Path(facts["directory"]) / "qemu.json").read_text())
        assert record["ready"]
        assert record["identity"]["pid"] == facts["pid"]
        assert (world.home.machine("m").data_disk).exists()

    play(root, work)


def test_a_running_machines_disk_grows_at_once_and_the_rest_is_pending(root: Path) -> None:
    async def work(world: World) -> None:
        machine = world.machine()
        await machine.ensure_running()
        await machine.change({"disk_gib": 3, "cpus": 2})
        assert ("disk.grow", {"disk_serial": "wherry-data", "bytes": 3 << 30}) in world.links[
            0
        ].calls
        facts = machine.inspect()
        assert (facts["disk_gib"], facts["cpus"]) == (3, 1)
        assert facts["pending"] == {"cpus": {"now": 1, "next": 2}}
        await machine.aclose()
        later = world.machine()  # another engine, which knows it from qemu.json
        assert await later.adopt()
        assert later.inspect()["pending"] == facts["pending"]
        await later.stop()
        assert (later.inspect()["cpus"], later.inspect()["pending"]) == (2, {})

    play(root, work)


def test_a_disk_that_grew_while_the_machine_was_off_is_filled_at_its_start(root: Path) -> None:
    async def work(world: World) -> None:
        machine = world.machine()
        await machine.ensure_running()
        await machine.stop()
        await machine.change({"disk_gib": 3})
        world.link_answers["disk.grow"] = AgentError("no room", code="failed")
        await machine.ensure_running()
        assert ("disk.grow", {"disk_serial": "wherry-data", "bytes": 3 << 30}) in world.links[
            1
        ].calls
        assert "the data disk stays as large as it was: no room" in machine.notices

    play(root, work)


def test_a_machine_that_is_held_does_not_start(root: Path) -> None:
    async def work(world: World) -> None:
        machine = world.machine()
        async with machine.held("is being cloned"):
            with pytest.raises(Conflict, match="'m' is being cloned"):
                await machine.ensure_running()
        await machine.ensure_running()
        with pytest.raises(Conflict, match="is running"):
            async with machine.held("is being cloned"):
                pass

    play(root, work)


def test_byte_code_is_fetched_once(root: Path) -> None:
    async def work(world: World) -> None:
        machine = world.machine()
        for _ in range(2):
            await machine.ensure_running()
            await machine.stop()
        fetched = [link.methods.count("system.bytecode") for link in world.links]
        assert fetched == [1, 0]
        assert len(list(world.image.glob("bytecode-*.cpio"))) == 1

    play(root, work)


def test_a_guest_that_sends_no_byte_code_starts_all_the_same(root: Path) -> None:
    async def work(world: World) -> None:
        world.link_answers["system.bytecode"] = AgentError("no", code="failed")
        machine = world.machine()
        await machine.ensure_running()
        assert machine.state is MachineState.RUNNING

    play(root, work)


def test_callers_at_the_same_time_start_one_qemu(root: Path) -> None:
    async def work(world: World) -> None:
        machine = world.machine()
        links = await asyncio.gather(*(machine.ensure_running() for _ in range(5)))
        assert len(set(map(id, links))) == len(world.links) == 1

    play(root, work)


def test_a_cancelled_caller_does_not_stop_the_start_of_others(root: Path) -> None:
    async def work(world: World) -> None:
        machine = world.machine()
        first = asyncio.create_task(machine.ensure_running())
        second = asyncio.create_task(machine.ensure_running())
        await asyncio.sleep(0)
        first.cancel()
        assert await second is machine.link

    play(root, work)


def test_a_qemu_that_ends_at_once_fails_as_spawned_with_its_words(root: Path) -> None:
    async def work(world: World) -> None:
        machine = world.machine("exit:1:q35 is not supported")
        with pytest.raises(BootFailed) as caught:
            await machine.ensure_running()
        assert caught.value.phase == "spawned"
        assert "QEMU ended, status 1" in caught.value.message
        assert "qemu: q35 is not supported" in caught.value.message
        assert machine.state is MachineState.FAILED
        assert "QEMU ended" in machine.inspect()["reason"]

    play(root, work)


@pytest.mark.parametrize(
    ("scenario", "phase"),
    [
        ("lines:hello from the kernel;then:end", "kernel"),
        ("lines:wherry: init;then:end", "init"),
        ("lines:wherry: init|wherry: agent;then:end", "agent"),
    ],
)
def test_a_guest_that_ends_names_the_phase_and_its_last_lines(
    root: Path, scenario: str, phase: str
) -> None:
    async def work(world: World) -> None:
        world.link_waits = True
        machine = world.machine(scenario)
        with pytest.raises(BootFailed) as caught:
            await machine.ensure_running()
        assert caught.value.phase == phase
        assert f"(phase {phase})" in caught.value.message
        assert "console: " in caught.value.message

    play(root, work)


def test_a_fatal_error_of_pid_1_is_the_reason(root: Path) -> None:
    async def work(world: World) -> None:
        world.link_waits = True
        machine = world.machine("lines:wherry: init|wherry: fatal: no such module")
        with pytest.raises(BootFailed, match="did not start: no such module") as caught:
            await machine.ensure_running()
        assert caught.value.phase == "init"

    play(root, work)


@pytest.mark.parametrize(
    ("scenario", "phase"),
    [("lines:", "kernel"), ("lines:wherry: init", "init"), (GOOD, "agent")],
)
def test_a_guest_that_hangs_fails_at_the_phases_deadline(
    root: Path, scenario: str, phase: str
) -> None:
    async def work(world: World) -> None:
        world.link_waits = True
        deadlines = Deadlines(**{"spawned": 10, "kernel": 10, "init": 10, "agent": 10, phase: 0.1})
        with pytest.raises(BootFailed, match=r"within 0\.1 s") as caught:
            await world.machine(scenario, deadlines=deadlines).ensure_running()
        assert caught.value.phase == phase

    play(root, work)


def test_a_guest_that_cannot_be_set_up_is_ended(root: Path) -> None:
    async def work(world: World) -> None:
        world.link_answers["system.setup"] = AgentError("no data disk", code="failed")
        machine = world.machine()
        with pytest.raises(AgentError, match="no data disk"):
            await machine.ensure_running()
        assert machine.state is MachineState.FAILED
        assert not world.home.machine("m").qemu_record.exists()
        world.link_answers.clear()
        await machine.ensure_running()
        assert machine.state is MachineState.RUNNING

    play(root, work)


def test_a_killed_qemu_is_noticed(root: Path) -> None:
    async def work(world: World) -> None:
        machine = world.machine()
        await machine.ensure_running()
        failed = reached(machine, MachineState.FAILED)
        kill(process_of(machine))
        await failed.wait()
        assert machine.link is None
        assert machine.inspect()["reason"] == "QEMU was ended by signal 9"
        assert world.links[0].closed
        with pytest.raises(MachineError, match="the machine is failed"):
            await machine.attach_layers([LayerDisk("sha256:1", Path("l"), "u")])

    play(root, work)


def test_a_stop_asks_the_guest_first(root: Path) -> None:
    async def work(world: World) -> None:
        machine = world.machine()
        await machine.ensure_running()
        process = process_of(machine)

        def power_off(params: dict[str, Any]) -> LinkError:
            kill(process)
            return LinkClosed("the guest went before its answer came through")

        world.links[0].answers["system.shutdown"] = power_off
        await machine.stop()
        assert "system.shutdown" in world.links[0].methods
        assert (machine.state, is_alive(process)) == (MachineState.STOPPED, False)
        assert not world.home.machine("m").qemu_record.exists()
        await machine.stop()

    play(root, work)


def test_a_stop_while_it_starts_breaks_the_start_off(root: Path) -> None:
    async def work(world: World) -> None:
        world.link_waits = True
        machine = world.machine()
        in_agent = asyncio.Event()

        def progress(phase: str, done: int, total: int) -> None:
            if phase == "agent":
                in_agent.set()

        starting = asyncio.create_task(machine.ensure_running(progress))
        await in_agent.wait()
        await machine.stop()
        with pytest.raises(MachineError, match="broken off"):
            await starting
        assert machine.state is MachineState.STOPPED

    play(root, work)


def test_a_later_engine_takes_over(root: Path) -> None:
    async def work(world: World) -> None:
        first = world.machine()
        await first.ensure_running()
        process = process_of(first)
        await first.aclose()
        assert is_alive(process)

        second = world.machine()
        heard: list[object] = []
        second.on_link(heard.append)
        assert await second.adopt()
        assert (process_of(second), second.state) == (process, MachineState.RUNNING)
        assert heard == [second.link]
        assert "system.setup" not in world.links[1].methods
        await second.attach_layers([LayerDisk("sha256:" + "1" * 64, Path("/l"), "u")])
        assert second.attached_layers == {"sha256:" + "1" * 64: 0}

    play(root, work)


def test_an_older_agent_is_replaced_at_adoption(root: Path) -> None:
    async def work(world: World) -> None:
        first = world.machine()
        await first.ensure_running()
        await first.aclose()

        def replace(params: dict[str, Any]) -> dict[str, Any]:
            assert params["digest"] == "d2"
            link = world.links[1]
            asyncio.get_running_loop().call_soon(link.reconnected, {"agent": {"digest": "d2"}})
            return {}

        world.link_answers["agent.replace"] = replace
        world.link_answers["system.info"] = {"pid1": {"version": "0.0.9", "digest": "d1"}}
        second = world.machine(digest="d2")
        assert await second.adopt()
        assert b"070701agent0" in [stream.written for stream in world.links[1].streams]
        assert "first process is of another version (0.0.9)" in second.notices[0]
        assert "machine stop and start" in second.notices[0]

    play(root, work)


def test_an_agent_that_refuses_to_be_replaced_is_driven_as_it_is(root: Path) -> None:
    async def work(world: World) -> None:
        first = world.machine()
        await first.ensure_running()
        await first.aclose()
        world.link_answers["agent.replace"] = AgentError("too old", code="unsupported")
        second = world.machine(digest="d2")
        assert await second.adopt()
        assert "too old" in second.notices[0]

    play(root, work)


def test_a_start_that_an_engine_left_half_way_is_ended(root: Path) -> None:
    async def work(world: World) -> None:
        first = world.machine()
        await first.ensure_running()
        process = process_of(first)
        file = world.home.machine("m").qemu_record
        file.write_text(json.dumps({**json.loads(file.read_text()), "ready": False}))
        await first.aclose()
        assert not await world.machine().adopt()
        assert wait_gone(process, 5)

    play(root, work)


def test_a_qemu_without_a_record_is_found_by_its_socket_and_ended(root: Path) -> None:
    async def work(world: World) -> None:
        first = world.machine()
        await first.ensure_running()
        process = process_of(first)
        world.home.machine("m").qemu_record.unlink()
        await first.aclose()
        second = world.machine()
        assert not await second.adopt()
        assert wait_gone(process, 5)
        await second.ensure_running()

    play(root, work)


def test_a_machine_whose_agent_is_lost_is_ended_at_adoption(root: Path) -> None:
    async def work(world: World) -> None:
        first = world.machine()
        await first.ensure_running()
        process = process_of(first)
        await first.aclose()
        world.link_error = LinkError("no answer")
        second = world.machine()
        assert not await second.adopt()
        assert wait_gone(process, 5)
        assert second.state is MachineState.STOPPED

    play(root, work)


def test_with_nothing_left_there_is_nothing_to_adopt(root: Path) -> None:
    async def work(world: World) -> None:
        machine = world.machine()
        assert not await machine.adopt()
        assert (machine.state, machine.link) == (MachineState.STOPPED, None)
        assert machine.console_tail(10) == ""

    play(root, work)


def test_a_listener_that_fails_does_not_stop_the_machine(root: Path) -> None:
    async def work(world: World) -> None:
        def broken(_: object) -> None:
            raise RuntimeError("a listener's bug")

        machine = world.machine()
        machine.on_state(broken)
        machine.on_link(broken)
        await machine.ensure_running()
        assert machine.state is MachineState.RUNNING

    play(root, work)
