"""A cold boot: from `ensure_running` to the agent's HELLO, and to a machine that is set up."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wherry.link import local_socket, open_link
from wherry.machine import Machine
from wherry.machine.bringup import Tools
from wherry.machine.guest import LinkPort
from wherry.paths import Home

from ..bench import CPUS, Bench
from ..measure import Samples
from ..report import Row, Target

TITLE = f"Cold boot ({CPUS} vCPUs)"
MEMORY_MIB = (1024, 4096)


@dataclass(slots=True)
class _Boots:
    """Seconds until the agent has answered, until the machine is ready, and to stop it."""

    hello: Samples
    ready: Samples
    stop: Samples

    @classmethod
    def none(cls) -> _Boots:
        return cls(Samples(), Samples(), Samples())


def rows(bench: Bench) -> Iterator[Row]:
    bench.vm_image()
    for memory in MEMORY_MIB:
        size = f"{memory // 1024} GiB"
        home = bench.home(f"boot-{memory}")
        asyncio.run(_boot(bench, home, memory, _Boots.none()))  # makes disk and byte code
        boots = _Boots.none()
        for _ in range(bench.rounds):
            asyncio.run(_boot(bench, home, memory, boots))
        yield Row(f"{size}: to the agent's HELLO", "s", boots.hello, target=Target(3.5))
        yield Row(f"{size}: to a machine that is set up", "s", boots.ready)
        yield Row(f"{size}: `machine stop`", "s", boots.stop)
    boots = _Boots.none()
    for number in range(bench.few):
        asyncio.run(_boot(bench, _fresh_home(bench, f"first-{number}"), MEMORY_MIB[0], boots))
    yield Row("1 GiB, the very first: no byte code, disk to be made", "s", boots.ready)


async def _boot(bench: Bench, home: Home, memory: int, boots: _Boots) -> None:
    said_hello: list[float] = []

    async def connect(path: Path, deadline: float) -> LinkPort:
        link = await open_link(local_socket(path), deadline=deadline)
        said_hello.append(time.perf_counter())
        return link

    machine = Machine("default", home, bench.settings(memory), tools=Tools(open_link=connect))
    begun = time.perf_counter()
    try:
        await machine.ensure_running(template=False)  # another group may have saved one
        boots.ready.add(time.perf_counter() - begun)
        boots.hello.add(said_hello[0] - begun)
        with boots.stop.timed():
            await machine.stop()
    finally:
        await machine.stop()
        await machine.aclose()


def _fresh_home(bench: Bench, name: str) -> Home:
    """A home that has packages and the image's files, but nothing that a boot left beside them."""
    image = bench.vm_image().initrd.parent
    home = Home(bench.work / name)
    target = home.vm_images / image.name
    target.parent.mkdir(parents=True)
    left = shutil.ignore_patterns("boot-*", "bytecode-*", "initrd.lock")
    shutil.copytree(image, target, ignore=left)
    shutil.copy(bench.cache / "probes.json", home.probes)
    return home
