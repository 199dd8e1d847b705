"""Sizes, log options and limits with Docker's own command line."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from harness import Wherry, eventually
from needs import require

pytestmark = [pytest.mark.contract, pytest.mark.vm]

BUSYBOX = "localhost/busybox"


@pytest.fixture(scope="module", autouse=True)
def docker_program() -> str:
    return require("docker.io", "docker")


@pytest.fixture
def name(wherry: Wherry) -> Iterator[str]:
    wherry.run("machine", "start", check=True, timeout=120)
    it = f"limit-{uuid.uuid4().hex[:8]}"
    yield it
    wherry.docker("rm", "-f", it)


def out(wherry: Wherry, *args: str) -> str:
    return wherry.docker(*args, check=True).stdout.decode().strip()


def test_sizes_of_what_a_container_wrote(wherry: Wherry, name: str) -> None:
    script = "dd if=/dev/zero of=/big bs=1k count=300; ln /big /again; rm /bin/cat"
    out(wherry, "run", "--name", name, BUSYBOX, "sh", "-c", script)
    own, total = map(
        int, out(wherry, "inspect", "-s", name, "-f", "{{.SizeRw}} {{.SizeRootFs}}").split()
    )
    assert own == 300 * 1024 and total > own
    assert out(wherry, "inspect", name, "-f", "{{.SizeRw}}") == "<nil>"
    shown = out(wherry, "ps", "-as", "--filter", f"name={name}", "--format", "{{.Size}}")
    assert shown.startswith("307kB (virtual ")
    line = next(it for it in out(wherry, "system", "df", "-v").splitlines() if name in it)
    assert "307kB" in line
    assert "307kB (virtual" in wherry.out("ps", "-as", "--filter", f"name={name}")
