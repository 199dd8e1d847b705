"""Two GB that the guest deletes leave the host's disk, again and again; with WHERRY_SOAK=1."""

from __future__ import annotations

import os

import pytest
from harness import Wherry
from waiting import eventually

MB = 1_000_000
ROUNDS = 3

pytestmark = [
    pytest.mark.vm,
    pytest.mark.soak,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        os.environ.get("WHERRY_SOAK") != "1",
        reason="writes 2 GB three times; tests/vm does the same with 200 MB",
    ),
]


def test_two_gigabytes_that_are_deleted_leave_the_host(wherry: Wherry) -> None:
    wherry.out("machine", "start", timeout=200)
    disk = wherry.home.machine("default").data_disk

    def allocated() -> int:
        return disk.stat().st_blocks * 512

    write = (
        "dd if=/dev/urandom of=/a bs=1M count=50; for i in $(seq 40); do cat /a; done > /b; sync"
    )
    for _ in range(ROUNDS):
        wherry.out("run", "--name", "big", "localhost/busybox", "sh", "-c", write, timeout=600)
        full = allocated()
        assert full > 2000 * MB
        wherry.out("rm", "big")
        wherry.run("volume", "prune", "--force", check=True)
        limit = full - 1800 * MB

        def smaller(limit: int = limit) -> bool:
            return allocated() < limit

        eventually("the file is smaller", smaller, seconds=120)
