"""Both kinds of foreign at once, and much of it: only in the long rounds (WHERRY_SOAK=1).

An arm64 machine under software emulation runs emulated amd64 programs, and an amd64 machine
configures a whole Debian of arm64.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from harness import Wherry
from needs import require

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
HOUR = 3600.0


@pytest.fixture
def arm(wherry: Wherry) -> Iterator[Wherry]:
    require("qemu-system-arm", "qemu-system-aarch64")
    wherry.run("machine", "create", "--arch", "arm64", "--memory", "1g", NAME, check=True)
    it = Wherry(wherry.home, {"WHERRY_MACHINE": NAME})
    it.run("machine", "start", "--no-template", check=True, timeout=240)
    yield it
    it.run("machine", "rm", "--force", NAME, timeout=60)


def test_an_arm64_machine_runs_both_architectures_in_turn(arm: Wherry) -> None:
    for _ in range(ROUNDS):
        foreign = arm.out("run", "--rm", "--platform", "linux/amd64", BUSYBOX, "uname", "-m")
        assert foreign == "x86_64"
        assert arm.out("run", "--rm", BUSYBOX, "uname", "-m") == "aarch64"
    done = arm.run("run", "--rm", "--platform", "linux/amd64", BUSYBOX, "sh", "-c", "kill -SEGV $$")
    assert done.returncode == 139
    assert "wherry machine create --arch amd64" in done.stderr.decode()


def test_a_foreign_debian_is_bootstrapped_and_runs(wherry: Wherry) -> None:
    wherry.run("image", "bootstrap", "--arch", "arm64", "-t", DEBIAN, check=True, timeout=HOUR)
    image = json.loads(wherry.out("inspect", "--type", "image", DEBIAN))[0]
    assert image["Architecture"] == "arm64"
    script = "uname -m && dpkg --print-architecture && dpkg --audit && apt-get check -qq"
    words = ["run", "--rm", "--platform", "linux/arm64", DEBIAN, "bash", "-c", script]
    assert wherry.out(*words, timeout=120).split() == ["aarch64", "arm64"]
    wherry.run("rmi", DEBIAN, check=True)
