"""The link over a real virtio-serial port, which loses data at every reconnect."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from wherry.link import Link, StreamReset
from wherry.machine import Machine

pytestmark = [pytest.mark.vm, pytest.mark.timeout(240)]

CUTS = 50


def test_fifty_cuts_under_full_load_lose_nothing_silently(machine: Machine, loop: Any) -> None:
    """The load is the guest's byte code, streamed again and again by two readers at once."""

    async def fetch(link: Link) -> bytes | None:
        stream = link.open_stream()
        await link.call("system.bytecode", {"stream": stream.id}, timeout=60)
        digest = hashlib.sha256()
        try:
            while data := await stream.read(65536):
                digest.update(data)
        except StreamReset:
            return None
        return digest.digest()

    async def scenario() -> tuple[int, int, set[bytes]]:
        link = machine.link
        assert isinstance(link, Link)
        expected = await fetch(link)
        assert expected is not None
        cutting = True
        complete, resets, digests = 0, 0, {expected}

        async def reader() -> None:
            nonlocal complete, resets
            while cutting:
                digest = await fetch(link)
                if digest is None:
                    resets += 1
                else:
                    complete += 1
                    digests.add(digest)

        readers = [asyncio.ensure_future(reader()) for _ in range(2)]
        for cut in range(CUTS):
            await asyncio.wait_for(until_connected(link), 20)
            await asyncio.sleep(0.01 * (cut % 7))  # cuts fall at different places of the stream
            link.connection_lost(ConnectionResetError("cut by the test"))
        cutting = False
        await asyncio.wait_for(asyncio.gather(*readers), 60)
        await link.call("system.info", {})
        return complete, resets, digests

    complete, resets, digests = loop.run(scenario(), timeout=200)
    assert len(digests) == 1, "a stream was silently short or garbled"
    assert complete >= 2
    assert resets == 0, "the agent was alive all the time: every stream must be resumed"


async def until_connected(link: Link) -> None:
    while not link.connected:
        await asyncio.sleep(0.005)
