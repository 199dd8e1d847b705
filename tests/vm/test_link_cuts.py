"""The link over a real virtio-serial port, which loses data at every reconnect.

`nothing_is_lost` is also what the other transports have to pass (test_transports.py).
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from vm_containers import busybox_layers, make_layer, run

from wherry.link import Link
from wherry.machine import Machine
from wherry.paths import Home

pytestmark = [pytest.mark.vm, pytest.mark.timeout(240)]

BLOB = random.Random(50).randbytes(8 << 20)


def test_fifty_cuts_under_full_load_lose_nothing(
    machine: Machine, vm_home: Home, tmp_path: Path, loop: Any
) -> None:
    nothing_is_lost(machine, vm_home, tmp_path, loop, 50)


def nothing_is_lost(machine: Machine, vm_home: Home, tmp_path: Path, loop: Any, cuts: int) -> None:
    """The load is two containers at a time that print 8 MiB each, started again and again."""

    async def scenario() -> int:
        image = await machine.prepare_image()
        layers = [*busybox_layers(vm_home, image), make_layer(tmp_path, {"blob": BLOB})]
        await machine.attach_layers(layers)
        link = machine.link
        assert isinstance(link, Link)
        cutting, complete = True, 0

        async def reader() -> None:
            nonlocal complete
            while cutting:
                # A stream that is reset, or a call that fails, would be an error here: the agent
                # is alive all the time, so everything has to be resumed.
                code, output = await run(link, layers, "cat", "/blob")
                assert code == 0
                assert output == BLOB, "a stream was short or garbled"
                complete += 1

        readers = [asyncio.ensure_future(reader()) for _ in range(2)]
        for cut in range(cuts):
            await asyncio.wait_for(until_connected(link), 20)
            await asyncio.sleep(0.02 * (cut % 7))  # cuts fall at different places of the stream
            link.connection_lost(ConnectionResetError("cut by the test"))
        cutting = False
        await asyncio.wait_for(asyncio.gather(*readers), 60)
        return complete

    assert loop.run(scenario(), timeout=200) >= 2


async def until_connected(link: Link) -> None:
    while not link.connected:
        await asyncio.sleep(0.005)
