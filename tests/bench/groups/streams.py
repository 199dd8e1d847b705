"""How fast a container's output reaches the user's pipe, and input and output through `cat`."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from harness import Wherry
from needs import require

from ..bench import BUSYBOX, Bench
from ..measure import Samples
from ..report import Row, Target

TITLE = "Streams (256 MiB through the whole stack, with start and end of the container; 1 GiB)"
BLOCK = 64 * 1024
BLOCKS = 4096
_READ = 1 << 20


def rows(bench: Bench) -> Iterator[Row]:
    require("docker.io", "docker")
    bench.vm_image()
    with bench.commands("streams", 1024) as wherry:
        wherry.run("machine", "start", check=True, timeout=300)
        dd = (BUSYBOX, "dd", "if=/dev/zero", f"bs={BLOCK}", f"count={BLOCKS}")
        out, unlogged = ("run", "--rm", *dd), ("run", "--rm", "--log-driver", "none", *dd)
        both = ("run", "--rm", "-i", BUSYBOX, "cat")
        for what, arguments, feed, target in (
            ("stdout of `dd` to a pipe, with its log kept", out, False, Target(50)),
            ("stdout of `dd` to a pipe, `--log-driver none`", unlogged, False, Target(100)),
            ("stdin and stdout of `cat`", both, True, None),
        ):
            ours, theirs = Samples(), Samples()
            for _ in range(bench.few):
                ours.add(rate(wherry, wherry.argv(*arguments), feed))
                theirs.add(rate(wherry, ["docker", *arguments], feed))
            yield Row(what, "MB/s", ours, theirs, "`docker`", target)


def rate(wherry: Wherry, argv: Sequence[str], feed: bool, blocks: int = BLOCKS) -> float:
    """MB/s of one command that puts so many blocks out. AssertionError when they are others."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        argv,
        env=wherry.environment,
        stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )
    assert process.stdout is not None
    if process.stdin is not None:
        threading.Thread(target=_feed, args=(process.stdin,), daemon=True).start()
    total = 0
    while data := process.stdout.read(_READ):
        total += len(data)
    code = process.wait(60)
    seconds = time.perf_counter() - begun
    process.stdout.close()
    assert (code, total) == (0, BLOCK * blocks), f"{argv}: status {code}, {total} bytes"
    return total / seconds / 1e6


def _feed(pipe: BinaryIO) -> None:
    block = bytes(BLOCK)
    with pipe:
        for _ in range(BLOCKS):
            pipe.write(block)
