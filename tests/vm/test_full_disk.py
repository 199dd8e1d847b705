"""The host's disk is full while a guest writes: the machine waits, says so, and goes on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from disks import memory_disk, resize
from faults import BUSYBOX, new_home
from harness import Wherry
from waiting import eventually

pytestmark = [pytest.mark.vm, pytest.mark.guest, pytest.mark.timeout(300)]

SMALL, LARGE = 48, 400
"""MiB: a machine needs 17, has_room asks for 64 free ones."""

WRITE = "dd if=/dev/urandom bs=1M count=36 2>/dev/null | tee /big | md5sum; sync"


@pytest.fixture
def small(test_cache: Path) -> Iterator[Wherry]:
    """Commands on a state directory that is nearly full."""
    root = Path(tempfile.mkdtemp(prefix="wh-"))
    with memory_disk(root, SMALL):
        it = Wherry(new_home(root, test_cache))
        try:
            yield it
        finally:
            it.run("machine", "rm", "--force", timeout=60)
    root.rmdir()


def machine(wherry: Wherry) -> Any:
    return json.loads(wherry.out("machine", "inspect"))[0]


def test_a_guest_that_finds_the_disk_full_waits_says_so_and_goes_on(small: Wherry) -> None:
    small.out("create", "--name", "idle", BUSYBOX, timeout=150)
    script = f"{WRITE}; sleep 100000"
    small.out("run", "-d", "--name", "writer", BUSYBOX, "sh", "-c", script)
    eventually("the machine waits", lambda: machine(small)["paused"], 60)
    assert machine(small)["paused"] == "the host's disk is full"
    assert "Up " in small.out("ps")
    for refused in (["exec", "writer", "true"], ["logs", "writer"], ["machine", "start"]):
        done = small.run(*refused)
        assert done.returncode != 0
        assert b"the machine is paused: the host's disk is full" in done.stderr
        assert b"make room" in done.stderr
    for refused in (
        ["create", BUSYBOX],
        ["volume", "create", "vol"],
        ["tag", BUSYBOX, "other"],
    ):
        done = small.run(*refused)
        assert done.returncode != 0
        assert b"the disk is full: make room on it" in done.stderr, done.stderr
    small.kill_engine()
    assert "Up " in small.out("ps", "-a", "--filter", "name=writer")
    assert machine(small)["paused"] == "the host's disk is full"
    assert small.out("rm", "idle") == "idle"
    resize(small.home.root, LARGE)
    eventually("it is written", lambda: small.run("logs", "writer").stdout, 120)
    written = small.out("logs", "writer")
    read = small.out("exec", "writer", "sh", "-c", "echo 3 > /proc/sys/vm/drop_caches; md5sum /big")
    assert read.split()[0] == written.split()[0]
    assert machine(small)["paused"] is None
    small.out("volume", "create", "vol")
    stored = small.out(
        "events", "--since", "1h", "--until", "0s", "--filter", "type=machine",
        "--format", "{{json .}}",
    )  # fmt: skip
    paused, went_on = map(json.loads, stored.splitlines())
    assert (paused["Action"], went_on["Action"]) == ("pause", "unpause")
    assert paused["Actor"]["Attributes"]["reason"] == "the host's disk is full"
    assert small.out("ps", "-q", "--filter", "name=writer")
