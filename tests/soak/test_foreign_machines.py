"""Both kinds of foreign at once, and much of it: only in the long rounds (WHERRY_SOAK=1).

An arm64 machine under software emulation runs emulated amd64 programs, and an amd64 machine
configures a whole Debian of arm64.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from foreign_programs import compiled, packaged
from harness import Wherry
from needs import require
from soak_table import record

from wherry.machine.accel import host_arch

pytestmark = [
    pytest.mark.vm,
    pytest.mark.soak,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(os.environ.get("WHERRY_SOAK") != "1", reason="takes an hour: WHERRY_SOAK=1"),
    pytest.mark.skipif(host_arch() != "amd64", reason="written for an x86-64 host"),
]

NAME = "reverse"
BUSYBOX = "localhost/busybox"
DEBIAN = "localhost/debian-arm64"
ROUNDS = 50
RUNS = 5
HOUR = 3600.0


@pytest.fixture
def arm(wherry: Wherry) -> Iterator[Wherry]:
    require("qemu-system-arm", "qemu-system-aarch64")
    wherry.run("machine", "create", "--arch", "arm64", "--memory", "1g", NAME, check=True)
    it = Wherry(wherry.home, {"WHERRY_MACHINE": NAME})
    it.run("machine", "start", "--no-template", check=True, timeout=240)
    yield it
    it.run("machine", "rm", "--force", NAME, timeout=60)


ARCHITECTURES = {
    # Debian's name: the platform, uname -m
    "arm64": ("linux/arm64", "aarch64"),
    "armhf": ("linux/arm/v7", "armv7l"),
    "riscv64": ("linux/riscv64", "riscv64"),
    "ppc64el": ("linux/ppc64le", "ppc64le"),
    "s390x": ("linux/s390x", "s390x"),
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_dynamic_programs_and_pipelines_run_emulated(
    wherry: Wherry, test_cache: Path, tmp_path: Path, arch: str
) -> None:
    platform, machine = ARCHITECTURES[arch]
    tar, pipeline, crash = compiled(tmp_path) if arch == "riscv64" else packaged(test_cache, arch)
    image = f"localhost/dynamic-{arch}"
    wherry.run("import", "--platform", platform, str(tar), image, check=True, timeout=120)
    command = ["run", "--rm", "--platform", platform, image]
    wherry.run(*command, *pipeline, check=True, timeout=300)  # shows that emulators are fetched
    begun = time.monotonic()
    for _ in range(RUNS):
        done = wherry.run(*command, *pipeline, timeout=300)
        assert done.stdout.decode().split() == [machine, "x000", "4999"], done.stderr
        assert done.stderr == b""
    each = (time.monotonic() - begun) / RUNS
    done = wherry.run(*command, *crash, timeout=300)
    assert done.returncode in (128 + signal.SIGSEGV, 128 + signal.SIGABRT), done
    assert b"or its emulation of" in done.stderr
    wherry.run("rmi", image, check=True)
    record(
        f"{platform} programs, emulated", RUNS, f"a pipeline of dynamic programs, {each:.2f} s each"
    )


def test_an_arm64_machine_runs_both_architectures_in_turn(arm: Wherry) -> None:
    for _ in range(ROUNDS):
        foreign = arm.out("run", "--rm", "--platform", "linux/amd64", BUSYBOX, "uname", "-m")
        assert foreign == "x86_64"
        assert arm.out("run", "--rm", BUSYBOX, "uname", "-m") == "aarch64"
    done = arm.run("run", "--rm", "--platform", "linux/amd64", BUSYBOX, "sh", "-c", "kill -SEGV $$")
    assert done.returncode == 139
    assert "wherry machine create --arch amd64" in done.stderr.decode()
    record("amd64 and arm64 in an arm64 machine, in turn", ROUNDS, "a container of each")


def test_a_foreign_debian_is_bootstrapped_and_runs(wherry: Wherry) -> None:
    wherry.run("image", "bootstrap", "--arch", "arm64", "-t", DEBIAN, check=True, timeout=HOUR)
    image = json.loads(wherry.out("inspect", "--type", "image", DEBIAN))[0]
    assert image["Architecture"] == "arm64"
    script = "uname -m && dpkg --print-architecture && dpkg --audit && apt-get check -qq"
    words = ["run", "--rm", "--platform", "linux/arm64", DEBIAN, "bash", "-c", script]
    assert wherry.out(*words, timeout=120).split() == ["aarch64", "arm64"]
    wherry.run("rmi", DEBIAN, check=True)
    record(
        "a Debian of arm64 configured in an amd64 machine",
        1,
        "it is whole: dpkg --audit, apt-get check",
    )
