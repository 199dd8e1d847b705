"""Layers: identity is proved before a mount, what is held stays, what is refused is let go."""

from __future__ import annotations

import errno
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from wherry_guest.agent.layers import Layer, LayerError, Layers, layer_from
from wherry_guest.agent.tasks import run
from wherry_guest.loop import Loop

T = TypeVar("T")


class FakeHost:
    """A virtio-scsi host whose disks a test plugs and unplugs."""

    def __init__(self) -> None:
        self.plugged: dict[int, tuple[str, str]] = {}
        self.known: dict[int, str] = {}

        self.claims: dict[str, int] = {}
        self.deleted: list[int] = []
        self.scanned: list[int] = []

    def plug(self, layer: Layer, *, seen: bool = True) -> None:
        """`seen`: the kernel heard of it by itself."""
        self.plugged[layer.lun] = (layer.serial, layer.uuid)
        if seen:
            self.known[layer.lun] = f"sd{layer.lun}"

    def disk(self, lun: int) -> str | None:
        return self.known.get(lun)

    def scan(self, lun: int) -> None:
        self.scanned.append(lun)
        if lun in self.plugged:
            self.known[lun] = f"sd{lun}"

    def delete(self, lun: int) -> bool:
        self.deleted.append(lun)
        self.known.pop(lun, None)
        return True

    def is_ready(self, device: Path) -> bool:
        return True

    def read_serial(self, device: Path) -> str:
        return self.plugged[int(device.name[2:])][0]

    def read_erofs_uuid(self, device: Path) -> str | None:
        return self.plugged[int(device.name[2:])][1] or None

    def is_claimed(self, device: Path) -> bool:
        """Busy for as many questions as a test said."""
        left = self.claims.get(device.name, 0)
        self.claims[device.name] = left - 1
        return left > 0


class FakeKernel:
    def __init__(self) -> None:
        self.mounts: dict[str, str] = {}
        self.busy: set[str] = set()

    def mount(self, source: str, target: str, fstype: str, flags: int, data: str | None) -> None:
        assert fstype == "erofs"
        assert flags & 1, "a layer is mounted read-only"
        self.mounts[target] = source

    def umount(self, target: str, flags: int = 0) -> None:
        if target in self.busy:
            raise OSError(errno.EBUSY, "busy", target)
        del self.mounts[target]


class Guest:
    """The layers of a machine, its host and kernel."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.host = FakeHost()
        self.kernel = FakeKernel()
        self.loop = Loop()
        self.layers = self.next_agent()

    def next_agent(self) -> Layers:
        kernel: Any = self.kernel
        host: Any = self.host
        self.layers = Layers(self.loop, kernel, self.directory, Path("/dev"), lambda: host)
        return self.layers

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        done = run(work)
        if not done.settled:
            done.when_settled(self.loop.stop)
            self.loop.run()
        return done.result()

    @property
    def mounted(self) -> set[str]:
        return {Path(target).name for target in self.kernel.mounts}


def layer(lun: int) -> Layer:
    return Layer(f"sha256:{lun:064x}", lun, f"{lun:032x}", f"{lun:032x}")


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


def test_layers_are_mounted_and_a_repeat_does_nothing(guest: Guest) -> None:
    wanted = [layer(1), layer(2)]
    for item in wanted:
        guest.host.plug(item)
    for _ in range(2):
        guest.do(guest.layers.attach(wanted))
    assert guest.mounted == {"1", "2"}
    assert guest.layers.highest_lun == 2
    assert [item["lun"] for item in guest.layers.all()] == [1, 2]
    assert guest.host.scanned == []


def test_missed_plug_event_is_answered_by_a_scan_of_that_address(guest: Guest) -> None:
    guest.host.plug(layer(7), seen=False)
    guest.do(guest.layers.attach([layer(7)]))
    assert guest.host.scanned == [7]
    assert guest.mounted == {"7"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"serial": "f" * 32}, "the serial is"),
        ({"uuid": "e" * 32}, "the EROFS UUID is"),
        ({"uuid": ""}, "the EROFS UUID is not there"),
    ],
)
def test_layer_of_another_identity_is_not_mounted_and_let_go(
    guest: Guest, change: dict[str, str], said: str
) -> None:
    guest.host.plug(replace(layer(3), **change))
    guest.host.plug(layer(4))
    with pytest.raises(LayerError, match=said) as caught:
        guest.do(guest.layers.attach([layer(3), layer(4)]))
    assert layer(3).diff_id in str(caught.value)
    assert guest.host.deleted == [3]
    assert guest.mounted == {"4"}, "the others are mounted all the same"


def test_lun_that_is_taken_is_refused(guest: Guest) -> None:
    guest.host.plug(layer(1))
    guest.do(guest.layers.attach([layer(1)]))
    with pytest.raises(LayerError, match="LUN 1 is"):
        guest.do(guest.layers.attach([replace(layer(2), lun=1)]))


def test_held_layer_is_busy_until_its_container_exits(guest: Guest) -> None:
    guest.host.plug(layer(1))
    guest.do(guest.layers.attach([layer(1)]))
    assert guest.layers.hold("c", [layer(1).diff_id]) == ("1",)
    assert guest.do(guest.layers.detach([1, 9])) == ([9], [1])
    guest.layers.release("c")
    assert guest.do(guest.layers.detach([1])) == ([1], [])
    assert guest.mounted == set()
    assert guest.layers.all() == []
    assert guest.layers.highest_lun == 1, "its number stays used up"


def test_overlay_that_goes_late_is_waited_for(guest: Guest) -> None:
    guest.host.plug(layer(1))
    guest.do(guest.layers.attach([layer(1)]))
    guest.host.claims["sd1"] = 3
    assert guest.do(guest.layers.detach([1])) == ([1], [])


def test_layer_that_another_namespace_uses_is_mounted_again(guest: Guest) -> None:
    guest.host.plug(layer(1))
    guest.do(guest.layers.attach([layer(1)]))
    guest.host.claims["sd1"] = 10**6
    assert guest.do(guest.layers.detach([1])) == ([], [1])
    assert guest.mounted == {"1"}
    assert guest.host.deleted == []


def test_overlay_order_is_topmost_first_and_a_double_keeps_its_topmost_place(
    guest: Guest,
) -> None:
    wanted = [layer(1), layer(2), layer(3)]
    for item in wanted:
        guest.host.plug(item)
    guest.do(guest.layers.attach(wanted))
    lowest_first = [layer(number).diff_id for number in (2, 1, 3, 2)]
    assert guest.layers.hold("c", lowest_first) == ("2", "3", "1")


def test_layer_that_is_not_attached_cannot_be_held(guest: Guest) -> None:
    with pytest.raises(LayerError, match="is not attached"):
        guest.layers.hold("c", ["sha256:aa"])


def test_next_agent_knows_what_is_mounted_and_held(guest: Guest) -> None:
    guest.host.plug(layer(1))
    guest.do(guest.layers.attach([layer(1)]))
    after = guest.next_agent()
    assert [item["lun"] for item in after.all()] == [1]
    assert after.highest_lun == 1
    after.hold_again("c", ["1"])
    assert guest.do(after.detach([1])) == ([], [1])


def test_uuid_is_taken_with_and_without_dashes() -> None:
    values = {"diff_id": "d", "lun": 1, "serial": "s"}
    uuid = "12345678-90AB-cdef-1234-567890abcdef"
    assert layer_from({**values, "uuid": uuid}).uuid == "1234567890abcdef1234567890abcdef"
