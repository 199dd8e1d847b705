"""Busy containers share what the link carries."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Sequence
from typing import BinaryIO

import pytest
from harness import Wherry

pytestmark = pytest.mark.vm

BUSYBOX = "localhost/busybox"
WINDOW_BYTES = 48 * 1024 * 1024
DEADLINE = 60.0


def shares(outputs: Sequence[BinaryIO]) -> list[int]:
    """Bytes of each over a window that begins when every one has put something out."""
    fds = {output.fileno(): number for number, output in enumerate(outputs)}
    counts: list[int] = []
    seen: set[int] = set()
    deadline = time.monotonic() + DEADLINE
    while sum(counts) < WINDOW_BYTES:
        readable, _, _ = select.select(list(fds), [], [], max(0.0, deadline - time.monotonic()))
        assert readable, f"no output within {DEADLINE} s: {counts}"
        for fd in readable:
            data = os.read(fd, 1 << 18)
            assert data, "a container has ended"
            seen.add(fd)
            if counts:
                counts[fds[fd]] += len(data)
        if not counts and len(seen) == len(fds):
            counts = [0] * len(fds)
    return counts


@pytest.mark.parametrize("driver", ["none", "json-file"])
def test_two_busy_containers_share_the_link_fairly(wherry: Wherry, driver: str) -> None:
    wherry.run("machine", "start", check=True, timeout=120)
    options = () if driver == "none" else ("--log-opt", "max-size=8m")
    names = [f"busy-{driver}-{number}" for number in range(2)]
    running = []
    try:
        for name in names:
            flags = ("--name", name, "--log-driver", driver, *options)
            argv = wherry.argv("run", *flags, BUSYBOX, "cat", "/dev/zero")
            running.append(
                subprocess.Popen(
                    argv, env=wherry.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
                )
            )
        counts = shares([process.stdout for process in running if process.stdout is not None])
    finally:
        for process in running:
            if process.stdout is not None:
                process.stdout.close()  # nobody reads on: nobody has to be waited for
        wherry.run("rm", "-f", *names)
        for process in running:
            process.wait(DEADLINE)
    assert min(counts) >= sum(counts) / 3, counts


def test_a_reader_who_does_not_read_keeps_no_container_alive(wherry: Wherry) -> None:
    wherry.run("machine", "start", check=True, timeout=120)
    argv = wherry.argv(
        "run", "--name", "unread", "--log-driver", "none", BUSYBOX, "cat", "/dev/zero"
    )
    process = subprocess.Popen(
        argv, env=wherry.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout as output:
        assert output.read(1000)
        wherry.run("rm", "-f", "unread", check=True)
    process.wait(DEADLINE)
