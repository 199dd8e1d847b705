"""A real QEMU: it boots, is adopted, dies, and stops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from vm_containers import make_layer
from vm_loop import LoopThread

from wherry.errors import BootFailed
from wherry.machine import Machine, MachineState
from wherry.machine.boot import Deadlines
from wherry.machine.bringup import Tools
from wherry.machine.image import prepare_image
from wherry.osutil import ProcessIdentity, identify, is_alive, kill
from wherry.paths import Home
from wherry.settings import Settings
from wherry_image import VmImage

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

MakeMachine = Callable[..., Machine]


@pytest.fixture
def make_machine(vm_home: Home, vm_settings: Settings, loop: LoopThread) -> Iterator[MakeMachine]:
    """Makes `Machine` objects; afterwards their VMs are stopped."""
    made: list[Machine] = []

    def make(name: str = "own", **fields: object) -> Machine:
        made.append(loop.call(lambda: Machine(name, vm_home, vm_settings, **fields)))  # type: ignore[arg-type]  # as given
        return made[-1]

    async def end(machine: Machine) -> None:
        await machine.stop()
        await machine.aclose()

    yield make
    for machine in made:
        loop.run(end(machine))


def _with_kernel(image: VmImage, kernel: Path) -> VmImage:
    return replace(image, kernel=kernel, fast_kernel=kernel)


def process_of(machine: Machine) -> ProcessIdentity:
    found = identify(machine.inspect()["pid"])
    assert found is not None
    return found


async def until(machine: Machine, state: MachineState) -> None:
    """Wait for a state; it is not polled for, but heard of."""
    reached = asyncio.Event()
    machine.on_state(lambda new: reached.set() if new is state else None)
    if machine.state is not state:
        async with asyncio.timeout(30):
            await reached.wait()


def test_a_cold_boot_and_its_phases(
    make_machine: MakeMachine, loop: LoopThread, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = make_machine()
    begun = time.monotonic()
    phases: dict[str, float] = {}

    def progress(phase: str, done: int, total: int) -> None:
        phases.setdefault(phase, time.monotonic() - begun)

    link = loop.run(machine.ensure_running(progress, template=False), timeout=300)
    ready = time.monotonic() - begun
    with capsys.disabled():
        times = ", ".join(f"{phase} {at:.2f} s" for phase, at in phases.items())
        print(f"\ncold boot (1 GiB, 2 vCPU): {times}; ready {ready:.2f} s")
    info = loop.run(link.call("system.info"))
    assert (info["cpus"], machine.state) == (2, MachineState.RUNNING)
    assert 0.8 * (1 << 30) < info["memory_bytes"] <= 1 << 30
    process = process_of(machine)
    loop.run(machine.stop())
    assert (machine.state, machine.link, is_alive(process)) == (MachineState.STOPPED, None, False)
    assert "wherry: agent" in machine.console_tail(50)
    assert "Power down" in machine.console_tail(50)


def test_a_new_engine_takes_over_what_an_old_one_left(
    make_machine: MakeMachine, loop: LoopThread, tmp_path: Path
) -> None:
    first = make_machine()
    loop.run(first.ensure_running(), timeout=300)
    process = process_of(first)
    layers = [make_layer(tmp_path, {f"file{number}": b"x" * number}) for number in range(3)]
    loop.run(first.attach_layers(layers))
    attached = first.attached_layers
    loop.run(first.aclose())

    second = make_machine()
    links: list[object] = []
    second.on_link(links.append)
    assert loop.run(second.adopt())
    assert (second.state, process_of(second)) == (MachineState.RUNNING, process)
    assert (second.attached_layers, links) == (attached, [second.link])
    more = make_layer(tmp_path, {"another": b"y"})
    loop.run(second.attach_layers([*layers, more]))
    assert second.attached_layers[more.diff_id] == max(attached.values()) + 1
    loop.run(second.stop())
    assert not is_alive(process)


def test_a_killed_qemu_is_noticed_and_can_be_started_again(
    make_machine: MakeMachine, loop: LoopThread
) -> None:
    machine = make_machine()
    loop.run(machine.ensure_running(), timeout=300)
    process = process_of(machine)
    kill(process)
    loop.run(until(machine, MachineState.FAILED))
    assert machine.link is None
    assert machine.inspect()["reason"] == "QEMU was ended by signal 9"
    loop.run(machine.ensure_running(), timeout=300)
    assert process_of(machine) != process


def test_two_that_want_it_running_start_one(make_machine: MakeMachine, loop: LoopThread) -> None:
    machine = make_machine()

    async def both() -> list[object]:
        return list(await asyncio.gather(machine.ensure_running(), machine.ensure_running()))

    first, second = loop.run(both(), timeout=300)
    assert first is second


def test_a_guest_without_an_init_fails_in_the_kernel_phase(
    make_machine: MakeMachine, loop: LoopThread, tmp_path: Path
) -> None:
    """The image's own initrd has none: it comes with the agent."""
    machine = make_machine("no-init", tools=Tools(agent_cpio=lambda: b"", agent_digest=lambda: "x"))
    with pytest.raises(BootFailed) as caught:
        loop.run(machine.ensure_running(), timeout=300)
    assert caught.value.phase == "kernel"
    assert "Kernel panic" in caught.value.message
    assert machine.state is MachineState.FAILED
    assert not (Path(machine.inspect()["directory"]) / "qemu.json").exists()


def test_a_kernel_that_is_none_fails_as_spawned(
    make_machine: MakeMachine, loop: LoopThread, tmp_path: Path
) -> None:
    rubbish = tmp_path / "kernel"
    rubbish.write_bytes(b"rubbish" * 1000)
    tools = Tools(prepare_image=lambda *args: _with_kernel(prepare_image(*args), rubbish))
    with pytest.raises(BootFailed) as caught:
        loop.run(make_machine("no-kernel", tools=tools).ensure_running(), timeout=300)
    assert caught.value.phase == "spawned"
    assert "QEMU ended, status 1" in caught.value.message


def test_a_kernel_that_says_nothing_fails_at_its_deadline(
    make_machine: MakeMachine, loop: LoopThread
) -> None:
    tools = Tools(deadlines=Deadlines(kernel=0.2))
    with pytest.raises(BootFailed, match=r"nothing more was heard of it within 0\.2 s") as caught:
        loop.run(make_machine("slow", tools=tools).ensure_running(template=False), timeout=300)
    assert caught.value.phase == "kernel"
