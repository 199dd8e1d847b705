"""Containers in one VM, by the agent's calls: start, end, removal; against crun and runc there.

Ours and theirs take turns in blocks, in the same VM, with the same root file system, limits,
capabilities, namespaces and paths. Ours is measured from the host: both ways through the virtual
serial port are in it, and so are the overlay, the log, and the files in /etc that theirs lack.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from wherry.machine import LayerDisk, Machine

from .. import reference
from ..bench import Bench
from ..guest import GuestContainers, layer, measured, running
from ..measure import Samples
from ..report import Row
from ..tars import layer_of_layout, small

TITLE = "Containers in one VM (1 GiB, 2 vCPUs; no engine)"
LAYERS = 12
BLOCKS = 5


def rows(bench: Bench) -> Iterator[Row]:
    busybox = layer_of_layout(bench.vm_image().busybox)
    work = bench.directory("core")
    layers = [layer(busybox, work)]
    for number in range(1, LAYERS):
        layers.append(layer(small(f"layer-{number}", work / f"{number}.tar"), work))
    debian = layer(bench.debian(*reference.PACKAGES), work)
    bundle = layer(reference.bundle_layer(busybox, work / "bundle.tar"), work)
    figures = asyncio.run(_measure(bench, work, layers, [debian, bundle]))
    run, many, run_exec = figures["run"], figures["run12"], figures["exec"]
    yield Row("run `true`, 1 layer", "ms", run, figures["crun run"], "`crun run`")
    yield Row("run `true`, 1 layer", "ms", run, figures["runc run"], "`runc run`")
    yield Row(f"run `true`, {LAYERS} layers", "ms", many, figures["crun run"], "`crun run`")
    yield Row("exec `true`", "ms", run_exec, figures["crun exec"], "`crun exec`")
    yield Row("exec `true`", "ms", run_exec, figures["runc exec"], "`runc exec`")


async def _measure(
    bench: Bench, work: Path, layers: list[LayerDisk], tools: list[LayerDisk]
) -> dict[str, Samples]:
    """Milliseconds of everything."""
    home = bench.home("core-home")
    names = ("run", "run12", "exec", "crun run", "runc run", "crun exec", "runc exec")
    figures = {name: Samples() for name in names}
    async with running(Machine("default", home, bench.settings())) as guest:
        await guest.machine.attach_layers([*layers, *tools])
        other = reference.Reference(guest, tools)
        await other.start()
        kept = measured("sleep", "1000000")
        await guest.start(kept, layers[:1])
        await guest.run(measured("true"), layers[:1])  # the first is not counted, as theirs
        await guest.exec(kept, "true")
        each = max(2, bench.many // BLOCKS)
        for _ in range(BLOCKS):
            await _ours(guest, figures["run"], layers[:1], each)
            await _theirs(other, figures, "crun run", each)
            await _ours(guest, figures["run12"], layers, each)
            await _theirs(other, figures, "runc run", max(1, each // 4))
            for _ in range(each):
                with figures["exec"].timed():
                    await guest.exec(kept, "true")
            await _theirs(other, figures, "crun exec", each)
            await _theirs(other, figures, "runc exec", max(1, each // 4))
        await guest.end(kept)
        await other.end()
    return {name: samples.map(lambda it: 1000 * it) for name, samples in figures.items()}


async def _ours(
    guest: GuestContainers, samples: Samples, layers: list[LayerDisk], count: int
) -> None:
    for _ in range(count):
        it = measured("true")
        with samples.timed():
            await guest.run(it, layers)


async def _theirs(
    other: reference.Reference, figures: dict[str, Samples], name: str, count: int
) -> None:
    runtime, what = name.split()
    figures[name].values.extend(await other.measure(runtime, what, count))
