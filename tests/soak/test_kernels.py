"""Every kernel series that machines can have boots and runs a container. With WHERRY_SOAK=1: the
everyday tests boot Debian's 6.1 and the default."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from harness import Wherry

pytestmark = [
    pytest.mark.vm,
    pytest.mark.soak,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.environ.get("WHERRY_SOAK") != "1", reason="with WHERRY_SOAK=1"),
]

SCRIPT = "echo x > /data/f && cat /data/f && cat /proc/self/cgroup && uname -r"


@pytest.fixture(params=["6.1", "6.12", "testing"])
def series(request: pytest.FixtureRequest, wherry: Wherry) -> Iterator[str]:
    size = ("--memory", "768m", "--cpus", "2", "--disk", "2g")
    wherry.run("machine", "create", "series", *size, "--kernel", request.param, check=True)
    yield str(request.param)
    wherry.run("machine", "rm", "-f", "series", check=True)


def test_each_series_runs_containers(wherry: Wherry, series: str) -> None:
    common = ("-M", "series", "run", "--rm", "-v", "vol:/data")
    shown = wherry.out(*common, "localhost/busybox", "sh", "-c", SCRIPT, timeout=400)
    version = shown.splitlines()[-1]
    assert shown.splitlines()[:2] == ["x", "0::/"]
    assert version.startswith(f"{series}.") or series == "testing"
    limits = ("--memory", "64m", "--pids-limit", "50", "--cpus", "0.5", "--read-only")
    wherry.out(*common, *limits, "--tmpfs", "/tmp", "localhost/busybox", "true")
    wherry.out("-M", "series", "run", "-d", "--name", "box", "localhost/busybox", "sleep", "1000")
    for command in (
        ["pause", "box"],
        ["unpause", "box"],
        ["exec", "box", "true"],
        ["rm", "-f", "box"],
    ):
        wherry.run("-M", "series", *command, check=True)
