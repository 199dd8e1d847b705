"""The machine as a user meets it: `machine start` of a machine that was saved, a first command from
off to done, what it costs while nothing happens.

The reference is another QEMU sandbox from PyPI on the same QEMU, under the same emulation.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Wherry

from wherry.client import Client
from wherry.machine.template import Templates
from wherry.paths import Home

from .. import sandbox
from ..bench import BUSYBOX, CPUS, Bench
from ..measure import Samples
from ..report import Row, Target

TITLE = f"The machine (restored, {CPUS} vCPUs, whole commands)"
MEMORY_MIB = (1024, 4096)
START_TARGETS = {1024: Target(0.6), 4096: Target(0.8)}
RUN_TARGET, STOP_TARGET = Target(1.0), Target(1.0)
IDLE_SECONDS = 20.0
_MB = 1e6


def rows(bench: Bench) -> Iterator[Row]:
    bench.vm_image()
    theirs: list[sandbox.Started] = []
    missing = ""
    try:
        theirs = sandbox.measure(bench.cache, bench.few, memory_mib=MEMORY_MIB[0], cpus=CPUS)
    except pytest.skip.Exception as reason:
        missing = str(reason)
    for memory in MEMORY_MIB:
        size = f"{memory // 1024} GiB"
        with bench.commands(f"machine-{memory}", memory) as wherry:
            _until_saved(wherry)
            start, stop, run = _rounds(wherry, bench.rounds)
            reference = theirs if memory == MEMORY_MIB[0] else []
            yield _row(f"{size}: `machine start`", start, reference, "start", START_TARGETS[memory])
            yield _row(
                f"{size}: off, to `run --rm busybox true` done", run, reference, "run", RUN_TARGET
            )
            yield Row(f"{size}: `machine stop`", "s", stop, target=STOP_TARGET)
            if memory == MEMORY_MIB[0]:
                yield from _costs(wherry)
    if missing:
        yield Row("the same with `quick-sandbox`", "s", None, why=missing)


def _row(what: str, ours: Samples, theirs: list[sandbox.Started], name: str, target: Target) -> Row:
    reference = Samples([getattr(it, name) for it in theirs]) if theirs else None
    return Row(what, "s", ours, reference, "`quick-sandbox`" if theirs else "", target)


def _until_saved(wherry: Wherry) -> None:
    """It is made after a boot, in the background: that is not what is measured."""
    wherry.run("machine", "start", "--quiet", check=True, timeout=300)
    wherry.run("machine", "template", check=True, timeout=300)
    wherry.run("machine", "stop", check=True)


def _rounds(wherry: Wherry, rounds: int) -> tuple[Samples, Samples, Samples]:
    """Seconds to start, to stop, and from off to the end of a first container."""
    start, stop, run = Samples(), Samples(), Samples()
    for _ in range(rounds):
        with start.timed():
            wherry.run("machine", "start", "--quiet", check=True, timeout=300)
        assert _facts(wherry)["restored"]
        with stop.timed():
            wherry.run("machine", "stop", check=True)
        with run.timed():
            wherry.run("run", "--rm", BUSYBOX, "true", check=True, timeout=300)
        wherry.run("machine", "stop", check=True)
    return start, stop, run


def _costs(wherry: Wherry) -> Iterator[Row]:
    """What a restored machine costs while nothing runs in it."""
    wherry.run("machine", "start", "--quiet", check=True, timeout=300)
    facts, client = _facts(wherry), Client(wherry.home, "default")
    guest = client.request("GET", "/wherry/v1/machine/guest").json()["figures"]
    engine = client.request("GET", "/wherry/v1/engine").json()["pid"]
    client.close()
    pss = guest["agent"]["pss_bytes"] + guest["pid1"]["pss_bytes"]
    yield Row("agent + PID 1, proportional set", "MB", Samples([pss / _MB]), target=Target(25))
    before = _cpu_seconds(facts["pid"])
    time.sleep(IDLE_SECONDS)
    spent = 100 * (_cpu_seconds(facts["pid"]) - before) / IDLE_SECONDS
    yield Row("QEMU, idle", "% of a core", Samples([spent]), target=Target(1.0))
    yield Row("engine, idle, resident", "MB", Samples([_resident(engine) / _MB]), target=Target(60))
    size = _template_bytes(wherry.home, Path(facts["directory"]))
    yield Row("1 GiB: template on disk", "MB", Samples([size / _MB]), target=Target(200))
    wherry.run("machine", "stop", check=True)


def _facts(wherry: Wherry) -> dict[str, Any]:
    client = Client(wherry.home, "default")
    try:
        facts: dict[str, Any] = client.request("GET", "/wherry/v1/machine").json()
    finally:
        client.close()
    return facts


def _cpu_seconds(pid: int) -> float:
    """proc_pid_stat(5): utime and stime."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def _template_bytes(home: Home, machine: Path) -> int:
    """Of the template that the machine was restored from."""
    argv = json.loads((machine / "qemu.json").read_bytes())["argv"]
    [memory] = [word for word in argv if word.startswith("memory-backend-file,")]
    key = Path(memory.partition("mem-path=")[2].partition(",")[0]).parent.name
    return next(int(it["bytes"]) for it in Templates(home.templates).all() if it["key"] == key)
