"""Layers in a real guest: what is mounted is what was plugged, however often the LUNs change."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from vm_containers import busybox_layers, make_layer, run
from vm_loop import LoopThread

from wherry.errors import MachineError
from wherry.machine import LayerDisk, Machine
from wherry.paths import Home

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

ROUNDS = 25
PER_ROUND = 12


@pytest.fixture(scope="module")
def busybox(vm_home: Home, machine: Machine, loop: LoopThread) -> list[LayerDisk]:
    image = loop.run(machine.prepare_image())
    layers = busybox_layers(vm_home, image)
    loop.call(machine.pin_layers, "busybox", [layer.diff_id for layer in layers])
    loop.run(machine.attach_layers(layers))
    return layers


def test_300_luns_come_and_go_and_never_show_the_wrong_file(
    machine: Machine, loop: LoopThread, busybox: list[LayerDisk], tmp_path: Path
) -> None:
    seen: set[int] = set()
    for number in range(ROUNDS):
        names = [f"f{number}-{index}" for index in range(PER_ROUND)]
        layers = [make_layer(tmp_path, {name: name.encode() * 300}) for name in names]
        loop.call(machine.pin_layers, "round", [layer.diff_id for layer in layers])
        loop.run(machine.attach_layers(layers))
        luns = {machine.attached_layers[layer.diff_id] for layer in layers}
        assert not luns & seen, "a LUN number was used twice"
        seen |= luns
        code, output = loop.run(run(machine.link, [*busybox, *layers], "cat", *names))
        assert (code, output) == (0, b"".join(name.encode() * 300 for name in names))
        loop.call(machine.unpin_layers, "round")
        loop.run(machine.trim_layers())
        assert machine.attached_layers.keys() == {layer.diff_id for layer in busybox}
    assert len(seen) == ROUNDS * PER_ROUND


def test_120_layers_at_once(
    machine: Machine,
    loop: LoopThread,
    busybox: list[LayerDisk],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [f"n{index}" for index in range(120)]
    layers = [make_layer(tmp_path, {name: name.encode(), "all": name.encode()}) for name in names]
    loop.call(machine.pin_layers, "many", [layer.diff_id for layer in layers])
    begun = time.monotonic()
    loop.run(machine.attach_layers(layers))
    attached = time.monotonic()
    code, output = loop.run(run(machine.link, [*busybox, *layers], "cat", "n0", "n119", "all"))
    assert (code, output) == (0, b"n0n119n119")
    with capsys.disabled():
        print(f"\n120 layers: plugged and mounted in {attached - begun:.2f} s")
    loop.call(machine.unpin_layers, "many")
    loop.run(machine.trim_layers())


def test_attaching_again_changes_nothing(
    machine: Machine, loop: LoopThread, tmp_path: Path
) -> None:
    layer = make_layer(tmp_path, {"once": b"1"})
    loop.run(machine.attach_layers([layer, layer]))
    lun = machine.attached_layers[layer.diff_id]
    loop.run(machine.attach_layers([layer]))
    assert machine.attached_layers[layer.diff_id] == lun
    loop.run(machine.trim_layers())


def test_a_layer_that_is_not_what_the_host_says_is_refused_and_unplugged(
    machine: Machine, loop: LoopThread, tmp_path: Path
) -> None:
    right = make_layer(tmp_path, {"right": b"1"})
    other = make_layer(tmp_path, {"other": b"2"})
    lie = LayerDisk(right.diff_id, other.path, right.uuid)
    with pytest.raises(MachineError, match="the guest did not mount a layer"):
        loop.run(machine.attach_layers([lie]))
    assert right.diff_id not in machine.attached_layers
    loop.run(machine.attach_layers([right]))
    assert right.diff_id in machine.attached_layers
    loop.run(machine.trim_layers())


def test_a_layer_without_a_file_is_a_clear_error(
    machine: Machine, loop: LoopThread, tmp_path: Path
) -> None:
    there = make_layer(tmp_path, {"there": b"1"})
    missing = LayerDisk("sha256:" + "5" * 64, tmp_path / "none.erofs", there.uuid)
    with pytest.raises(MachineError, match="cannot plug layer sha256:5555") as caught:
        loop.run(machine.attach_layers([there, missing]))
    assert "none.erofs" in caught.value.message
    assert machine.attached_layers.keys().isdisjoint({there.diff_id, missing.diff_id})
