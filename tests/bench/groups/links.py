"""What carries the link: a call's round trip, and a container's output, by port, vsock and SSH."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from harness import Wherry
from vsock_daemon import vsock_daemon

from wherry.machine import Machine, create_machine, default_config
from wherry.machine.vsock import DEVICE
from wherry.paths import Home

from ..bench import BUSYBOX, CPUS, Bench
from ..measure import Samples
from ..report import Row
from .streams import rate

TITLE = f"Links (1 GiB, {CPUS} vCPUs)"
CALLS = 500
BLOCKS = 1024
"""Of 64 KiB."""

_NAMES = {"serial": "virtio-serial", "vsock": "vsock", "ssh": "SSH over virtio-serial"}


def rows(bench: Bench) -> Iterator[Row]:
    bench.vm_image()
    reference: dict[str, Samples] = {}
    for kind, name in _NAMES.items():
        try:
            trips, rates = _measure(bench, kind)
        except pytest.skip.Exception as skipped:
            yield Row(f"{name}: a call and its answer", "ms", None, why=str(skipped))
            continue
        against = "" if kind == "serial" else "virtio-serial"
        yield Row(f"{name}: a call and its answer", "ms", trips, reference.get("trips"), against)
        yield Row(
            f"{name}: output of `dd`, unlogged", "MB/s", rates, reference.get("rates"), against
        )
        if kind == "serial":
            reference = {"trips": trips, "rates": rates}


def _measure(bench: Bench, kind: str) -> tuple[Samples, Samples]:
    """Milliseconds of calls, MB/s of output."""
    with pytest.MonkeyPatch.context() as patch:
        if kind == "vsock" and not os.access(DEVICE, os.R_OK | os.W_OK):
            patch.setenv("PATH", f"{vsock_daemon(bench.cache)}{os.pathsep}{os.environ['PATH']}")
        home = bench.home(f"by-{kind}")
        create_machine(home, kind, replace(default_config(bench.settings()), link=kind))
        wherry = Wherry(home, bench.byte_code)
        try:
            trips = asyncio.run(_trips(bench, home, kind))
            rates = Samples()
            dd = ("dd", "if=/dev/zero", "bs=65536", f"count={BLOCKS}")
            argv = wherry.argv("-M", kind, "run", "--rm", "--log-driver", "none", BUSYBOX, *dd)
            for _ in range(bench.few):
                rates.add(rate(wherry, argv, False, BLOCKS))
            return trips, rates
        finally:
            wherry.run("machine", "rm", "--force", kind, timeout=60)


async def _trips(bench: Bench, home: Home, kind: str) -> Samples:
    """Of a machine that is left running."""
    machine = Machine(kind, home, bench.settings())
    samples = Samples()
    try:
        link = await machine.ensure_running()
        assert machine.inspect()["carried_by"] == kind, machine.notices
        for _ in range(CALLS):
            begun = time.perf_counter()
            await link.call("layers.list", {})
            samples.add((time.perf_counter() - begun) * 1000)
    finally:
        await machine.aclose()
    return samples
