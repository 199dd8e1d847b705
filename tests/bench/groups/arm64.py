"""The other architecture, emulated: an arm64 machine on this host, and arm64 programs in its own.

Whole commands, as a user waits for them. On an arm64 host the other architecture is amd64.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from harness import Wherry
from needs import require

from wherry.machine.accel import host_arch

from ..bench import BUSYBOX, CPUS, Bench
from ..measure import Samples
from ..report import Row, Target

OTHER = {"amd64": "arm64", "arm64": "amd64"}[host_arch()]
TITLE = f"An {OTHER} machine, and {OTHER} programs (1 GiB, {CPUS} vCPUs, emulated)"
MEMORY_MIB = 1024
BOOT_TARGET, RESTORE_TARGET = Target(9.0), Target(1.0)
QEMU = {
    "amd64": ("qemu-system-x86", "qemu-system-x86_64"),
    "arm64": ("qemu-system-arm", "qemu-system-aarch64"),
}


def rows(bench: Bench) -> Iterator[Row]:
    require(*QEMU[OTHER])
    bench.vm_image()
    with bench.commands("other", MEMORY_MIB) as wherry:
        yield from _machine(bench, wherry)
        yield from _programs(bench, wherry)


def _machine(bench: Bench, wherry: Wherry) -> Iterator[Row]:
    wherry.run("machine", "create", "--arch", OTHER, "--memory", "1g", "other", check=True)
    it = Wherry(wherry.home, {**wherry.extra_environment, "WHERRY_MACHINE": "other"})
    try:
        _started(it, "--no-template")  # makes disk and byte code
        it.run("machine", "stop", check=True)
        boot, restore, first, next_ = Samples(), Samples(), Samples(), Samples()
        for _ in range(bench.few):
            with boot.timed():
                _started(it, "--no-template")
            assert not _restored(it)
            it.run("machine", "stop", check=True)
        yield Row("cold boot, `machine start --no-template`", "s", boot, target=BOOT_TARGET)
        _started(it)
        it.run("machine", "template", check=True, timeout=300)
        it.run("machine", "stop", check=True)
        for _ in range(bench.rounds):
            with restore.timed():
                _started(it)
            assert _restored(it)
            with first.timed():
                it.run("run", "--rm", BUSYBOX, "true", check=True, timeout=120)
            with next_.timed():
                it.run("run", "--rm", BUSYBOX, "true", check=True)
            it.run("machine", "stop", check=True)
        yield Row("restored, `machine start`", "s", restore, target=RESTORE_TARGET)
        yield Row("its first `run --rm IMAGE true`", "s", first)
        yield Row("its second one", "s", next_)
    finally:
        it.run("machine", "rm", "--force", "other", timeout=60)


def _programs(bench: Bench, wherry: Wherry) -> Iterator[Row]:
    """In the machine of this host's own architecture, beside its own programs."""
    command = ["run", "--rm", BUSYBOX, "uname", "-m"]
    foreign = [*command[:2], "--platform", f"linux/{OTHER}", *command[2:]]
    for warm in (command, foreign):
        wherry.run(*warm, check=True, timeout=300)
    ours, native = Samples(), Samples()
    for _ in range(bench.rounds):
        with ours.timed():
            wherry.run(*foreign, check=True)
        with native.timed():
            wherry.run(*command, check=True)
    what = f"`run --rm --platform linux/{OTHER} IMAGE uname -m`"
    yield Row(what, "s", ours, native, "the machine's own")


def _started(wherry: Wherry, *flags: str) -> None:
    wherry.run("machine", "start", "--quiet", *flags, check=True, timeout=300)


def _restored(wherry: Wherry) -> bool:
    return bool(json.loads(wherry.out("machine", "inspect"))[0]["restored"])
