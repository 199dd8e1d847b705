"""LUNs: numbers are used once, unplugging begins in the guest, idle layers go first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from machine_fakes import FakeLink

from wherry.errors import AgentError, MachineError
from wherry.machine.layers import HIGHEST_LUN, LayerDisk, LayerPool, serial_of
from wherry.machine.qmp import QmpError


class FakeQmp:
    """A QEMU with block nodes and devices, and a log of commands."""

    def __init__(self) -> None:
        self.nodes: dict[str, str] = {}
        self.devices: dict[str, int] = {}
        self.commands: list[str] = []
        self.missing: set[str] = set()
        self._handlers: list[Callable[[str, Mapping[str, Any]], None]] = []

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float = 30.0
    ) -> Any:
        given: dict[str, Any] = dict(arguments or {})
        self.commands.append(command)
        await asyncio.sleep(0)
        return getattr(self, command.replace("-", "_"))(given)

    def on_event(self, handler: Callable[[str, Mapping[str, Any]], None]) -> None:
        self._handlers.append(handler)

    def remove_handler(self, handler: Callable[[str, Mapping[str, Any]], None]) -> None:
        self._handlers.remove(handler)

    def blockdev_add(self, given: dict[str, Any]) -> None:
        filename = given["file"]["filename"]
        if filename in self.missing:
            raise QmpError(f"Could not open '{filename}'", kind="GenericError")
        assert given["read-only"] and given["driver"] == "raw"
        assert given["node-name"] not in self.nodes
        self.nodes[given["node-name"]] = filename

    def device_add(self, given: dict[str, Any]) -> None:
        if given["drive"] not in self.nodes:
            raise QmpError("no such node", kind="GenericError")
        assert (given["driver"], given["channel"], given["scsi-id"]) == ("scsi-hd", 0, 0)
        self.devices[given["id"]] = given["lun"]

    def device_del(self, given: dict[str, Any]) -> None:
        del self.devices[given["id"]]
        for handler in tuple(self._handlers):
            handler("DEVICE_DELETED", {"device": given["id"]})

    def blockdev_del(self, given: dict[str, Any]) -> None:
        del self.nodes[given["node-name"]]

    def query_named_block_nodes(self, given: dict[str, Any]) -> list[dict[str, str]]:
        return [{"node-name": name} for name in (*self.nodes, "data", "#block042")]


class Vm:
    """A pool between a fake QEMU and a fake guest."""

    def __init__(self, idle_limit: int = 100) -> None:
        self.qmp = FakeQmp()
        self.link = FakeLink()
        self.link.answers["layers.detach"] = self.detach
        self.pins: dict[str, frozenset[str]] = {}
        self.busy: set[int] = set()
        self.pool = LayerPool(self.qmp, self.call, self.pins, idle_limit=idle_limit)

    async def call(self, method: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        return await self.link.call(method, params)

    def detach(self, params: dict[str, Any]) -> dict[str, Any]:
        assert all(lun in self.qmp.devices.values() for lun in params["luns"]), "gone too early"
        return {
            "detached": [lun for lun in params["luns"] if lun not in self.busy],
            "busy": [lun for lun in params["luns"] if lun in self.busy],
        }

    @property
    def luns(self) -> list[int]:
        return sorted(self.qmp.devices.values())


def layer(number: int) -> LayerDisk:
    return LayerDisk(f"sha256:{number:064x}", Path(f"/layers/{number}"), f"{number:032x}")


def layers(*numbers: int) -> list[LayerDisk]:
    return [layer(number) for number in numbers]


def check(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(10):
            await work()

    asyncio.run(main())


def test_the_serial_is_the_diff_ids_first_32_digits() -> None:
    assert serial_of("sha256:" + "0123456789abcdef" * 4) == "0123456789abcdef" * 2


def test_layers_are_plugged_and_the_guest_is_told_in_one_call() -> None:
    async def work() -> None:
        vm = Vm()
        await vm.pool.attach(layers(1, 2, 3))
        assert vm.pool.attached == {layer(n).diff_id: n - 1 for n in (1, 2, 3)}
        [(method, params)] = vm.link.calls
        assert method == "layers.attach"
        assert params["layers"][1] == {
            "diff_id": layer(2).diff_id,
            "lun": 1,
            "serial": "0" * 32,
            "uuid": f"{2:032x}",
        }
        assert vm.qmp.commands == ["blockdev-add", "device_add"] * 3

    check(work)


def test_uuids_reach_the_guest_without_dashes() -> None:
    async def work() -> None:
        vm = Vm()
        dashed = "4CD1D530-6e21-5278-862c-f7f57d0359fb"
        await vm.pool.attach([LayerDisk(layer(1).diff_id, Path("/l"), dashed)])
        assert vm.link.calls[0][1]["layers"][0]["uuid"] == "4cd1d5306e215278862cf7f57d0359fb"

    check(work)


def test_a_lun_number_is_never_used_again() -> None:
    async def work() -> None:
        vm = Vm()
        for number in range(20):
            await vm.pool.attach(layers(number % 3, number))
            await vm.pool.trim(keep=0)
            assert vm.luns == []
        assert (
            vm.pool.highest_lun
            == len([command for command in vm.qmp.commands if command == "device_add"]) - 1
        )

    check(work)


def test_overlapping_callers_plug_each_layer_once() -> None:
    async def work() -> None:
        vm = Vm()
        await asyncio.gather(
            vm.pool.attach(layers(1, 2)), vm.pool.attach(layers(2, 3)), vm.pool.attach(layers(1, 3))
        )
        assert vm.qmp.commands.count("device_add") == 3
        assert len(vm.pool.attached) == 3

    check(work)


def test_when_the_one_that_plugs_fails_the_one_that_waits_tries_itself() -> None:
    async def work() -> None:
        vm = Vm()
        vm.qmp.missing.add("/layers/9")
        first = asyncio.create_task(vm.pool.attach(layers(1, 9)))
        second = asyncio.create_task(vm.pool.attach(layers(1)))
        with pytest.raises(MachineError, match="/layers/9"):
            await first
        await second
        assert vm.pool.attached == {layer(1).diff_id: 2}
        assert vm.luns == [2]

    check(work)


def test_a_caller_that_is_cancelled_leaves_nothing_half_plugged() -> None:
    async def work() -> None:
        vm = Vm()
        task = asyncio.create_task(vm.pool.attach(layers(1)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await vm.pool.attach(layers(1))
        assert vm.pool.attached == {layer(1).diff_id: 0}

    check(work)


def test_the_least_recently_used_idle_layers_go_first() -> None:
    async def work() -> None:
        vm = Vm(idle_limit=2)
        for number in (1, 2, 3, 4):
            await vm.pool.attach(layers(number))
        vm.pins["container"] = frozenset({layer(1).diff_id})
        await vm.pool.attach(layers(2))
        await vm.pool.trim()
        assert vm.pool.attached.keys() == {layer(n).diff_id for n in (1, 2, 4)}
        assert vm.luns == [0, 1, 3]

    check(work)


def test_a_layer_goes_only_after_the_guest_has_let_go() -> None:
    async def work() -> None:
        vm = Vm()
        await vm.pool.attach(layers(1, 2))
        vm.busy.add(0)
        await vm.pool.trim(keep=0)
        assert vm.luns == [0]
        assert vm.pool.attached == {layer(1).diff_id: 0}
        vm.busy.clear()
        await vm.pool.trim(keep=0)
        assert (vm.luns, vm.qmp.nodes) == ([], {})

    check(work)


def test_what_is_being_attached_is_not_trimmed_under_its_caller() -> None:
    async def work() -> None:
        vm = Vm()
        await vm.pool.attach(layers(1))
        second = asyncio.create_task(vm.pool.attach(layers(1, 2)))
        await asyncio.sleep(0)
        await vm.pool.trim(keep=0)
        await second
        assert vm.pool.attached.keys() == {layer(1).diff_id, layer(2).diff_id}

    check(work)


def test_a_layer_that_is_leaving_comes_back_under_a_new_number() -> None:
    async def work() -> None:
        vm = Vm()
        await vm.pool.attach(layers(1))
        leaving = asyncio.create_task(vm.pool.trim(keep=0))
        await asyncio.sleep(0)
        await vm.pool.attach(layers(1))
        await leaving
        assert vm.pool.attached == {layer(1).diff_id: 1}

    check(work)


def test_a_layer_that_the_guest_refuses_is_unplugged_and_named() -> None:
    async def work() -> None:
        vm = Vm()
        vm.link.answers["layers.attach"] = AgentError("layer x: serial differs", code="failed")
        with pytest.raises(MachineError, match="layer x: serial differs"):
            await vm.pool.attach(layers(1, 2))
        assert (vm.luns, vm.qmp.nodes, vm.pool.attached) == ([], {}, {})
        vm.link.answers["layers.attach"] = {}
        await vm.pool.attach(layers(1))
        assert vm.pool.attached == {layer(1).diff_id: 2}

    check(work)


def test_adoption_learns_what_is_mounted_and_clears_what_is_not() -> None:
    async def work() -> None:
        vm = Vm()
        await vm.pool.attach(layers(1, 2, 3))
        vm.link.answers["layers.list"] = {
            "layers": [
                {"diff_id": layer(1).diff_id, "lun": 0, "serial": "0" * 32, "uuid": "u"},
                {"diff_id": layer(2).diff_id, "lun": 1, "serial": "another", "uuid": "u"},
                {"diff_id": layer(9).diff_id, "lun": 7, "serial": "0" * 32, "uuid": "u"},
            ],
            "highest_lun": 11,
        }
        later = LayerPool(vm.qmp, vm.call, vm.pins)
        await later.adopt()
        assert later.attached == {layer(1).diff_id: 0}
        assert vm.luns == [0]
        await later.attach(layers(4))
        assert later.attached[layer(4).diff_id] == 12

    check(work)


def test_when_all_numbers_are_used_up_the_error_says_what_to_do() -> None:
    async def work() -> None:
        vm = Vm()
        vm.link.answers["layers.list"] = {"layers": [], "highest_lun": HIGHEST_LUN - 1}
        await vm.pool.adopt()
        await vm.pool.attach(layers(1))
        with pytest.raises(MachineError, match="used up") as caught:
            await vm.pool.attach(layers(2))
        assert "restart" in str(caught.value.hint)

    check(work)
