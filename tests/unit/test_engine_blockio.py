"""Limits of block I/O: Docker's fields, what the spec says, what the guest is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_fakes import World, play

from wherry.api import fields
from wherry.engine.blockio import FIELDS, block_io, block_io_params, check_block_io
from wherry.engine.spec import resources
from wherry.engine.updates import changes_limits, updated_host_config
from wherry.errors import InvalidInput
from wherry_guest.agent.limits import apply
from wherry_guest.agent.request import BLOCK_IO
from wherry_guest.core.limits import limits
from wherry_guest.core.resources import parse_resources


def test_a_weight_is_the_specs() -> None:
    assert block_io({"BlkioWeight": 300}) == {"weight": 300}
    assert resources({"BlkioWeight": 300})["blockIO"] == {"weight": 300}
    assert "blockIO" not in resources({"BlkioWeight": 0})


def test_limits_of_devices_name_them_by_path() -> None:
    host_config: dict[str, Any] = {
        field: [{"Path": "/dev/vda", key: 100}] for field, (_, key) in FIELDS.items()
    }
    check_block_io(host_config)
    told = block_io_params(host_config)
    assert [item["limit"] for item in told] == list(BLOCK_IO)
    assert {(item["path"], item["value"]) for item in told} == {("/dev/vda", 100)}
    nothing: dict[str, Any] = {"BlkioDeviceReadBps": [{"Path": "/dev/vda", "Rate": 0}]}
    assert block_io_params(nothing) == []


@pytest.mark.parametrize(
    ("host_config", "words"),
    [
        ({"BlkioWeight": 9}, "range of blkio weight is from 10 to 1000"),
        ({"BlkioWeight": 1001}, "range of blkio weight"),
        ({"BlkioWeightDevice": [{"Path": "/dev/vda", "Weight": 5}]}, "range of blkio weight"),
        ({"BlkioDeviceReadBps": [{"Path": "vda", "Rate": 5}]}, "'vda' is no path of a device"),
        ({"BlkioDeviceReadBps": [{"Rate": 5}]}, "None is no path of a device"),
        ({"BlkioDeviceWriteIOps": [{"Path": "/dev/vda", "Rate": -1}]}, "no valid Rate"),
        ({"BlkioDeviceWriteIOps": [{"Path": "/dev/vda"}]}, "no valid Rate"),
    ],
)
def test_what_is_wrong_is_refused(host_config: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        check_block_io(host_config)


def test_an_update_takes_a_weight() -> None:
    fields.check(fields.UPDATE, {"BlkioWeight": 20})
    after = updated_host_config({"BlkioWeight": 10}, {"BlkioWeight": 20})
    assert after["BlkioWeight"] == 20 and changes_limits({}, after)
    with pytest.raises(InvalidInput, match="range of blkio weight"):
        updated_host_config({}, {"BlkioWeight": 5})


def test_every_list_of_the_agents_is_one_of_the_specs() -> None:
    for name, key in BLOCK_IO.items():
        item = {"major": 254, "minor": 0, key: 50}
        assert limits(parse_resources({"blockIO": {name: [item]}}))


def test_a_weight_goes_to_the_file_that_the_kernel_has(tmp_path: Path) -> None:
    (tmp_path / "io.weight").write_text("default 100\n254:0 50\n")
    apply(tmp_path, {"blockIO": {"weight": 10}})
    assert (tmp_path / "io.weight").read_text() == "default 1"
    (tmp_path / "io.bfq.weight").write_text("")
    apply(tmp_path, {"blockIO": {"weight": 10}})
    assert (tmp_path / "io.bfq.weight").read_text() == "10"


def test_the_guest_is_told(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        limit = [{"Path": "/dev/vda", "Rate": 7}]
        made = await world.run(BlkioWeight=20, BlkioDeviceReadIOps=limit)
        params = world.agent.containers[made.id].params
        assert params["block_io"] == [
            {"path": "/dev/vda", "limit": "throttleReadIOPSDevice", "value": 7}
        ]
        assert params["spec"]["linux"]["resources"]["blockIO"] == {"weight": 20}

    play(tmp_path, scene)
