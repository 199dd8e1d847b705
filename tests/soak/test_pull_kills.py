"""A pull is killed with SIGKILL at random moments and started again.

It ends whole, and no blob that was finished is fetched twice. Ten rounds; WHERRY_SOAK=1: 200.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_fakes import FakeImage, FakeRegistry, digest, gz, running, tar_of

from wherry.images.store import ImageStore
from wherry.paths import Home
from wherry.settings import Settings

LONG = os.environ.get("WHERRY_SOAK") == "1"
ROUNDS = 200 if LONG else 10
KILLS = 3
PULL_SECONDS = 60.0

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600 if LONG else 300)]

PULL = """
import sys
from pathlib import Path
from wherry.images.auth import Credentials
from wherry.images.store import ImageStore
from wherry.paths import Home
from wherry.settings import Settings
store = ImageStore(Home(Path(sys.argv[1])), Settings())
store.pull(sys.argv[2], auth=Credentials())
"""


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with running(FakeRegistry()) as fake:
        yield fake


def image(seed: int) -> FakeImage:
    """Small and large layers, one of them large enough for a process of its own."""
    source = random.Random(seed)
    sizes = [5 << 20, *(source.randrange(1000, 800_000) for _ in range(7))]
    tars = [tar_of({f"file{n}": source.randbytes(size)}) for n, size in enumerate(sizes)]
    return FakeImage(tars, compress=gz)


def start(home: Home, name: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", PULL, str(home.root), name]
    return subprocess.Popen(arguments, env=environment)


def finished_blobs(home: Home) -> set[str]:
    directory = home.store / "blobs" / "sha256"
    return {f"sha256:{path.name}" for path in directory.iterdir()} if directory.exists() else set()


def fetches(registry: FakeRegistry, since: int) -> set[str]:
    """Blobs that were asked for, from a request on."""
    found = (path.rpartition("/")[2] for _, path in registry.requests[since:] if "/blobs/" in path)
    return set(found)


def test_a_killed_pull_goes_on_where_it_was(registry: FakeRegistry, tmp_path: Path) -> None:
    fake = image(1)
    name = registry.add("a", "1", fake)
    begun = time.monotonic()
    child = start(Home(tmp_path / "measure"), name)
    assert child.wait(PULL_SECONDS) == 0
    seconds = time.monotonic() - begun
    seed = random.randrange(1 << 30)
    print(f"seed {seed}, an undisturbed pull takes {seconds:.2f} s")
    moments = random.Random(seed)
    for number in range(ROUNDS):
        home = Home(tmp_path / f"round{number}")
        _round(registry, home, name, fake, [moments.uniform(0, seconds) for _ in range(KILLS)])


def _round(
    registry: FakeRegistry, home: Home, name: str, fake: FakeImage, delays: list[float]
) -> None:
    done: list[tuple[int, set[str]]] = []
    for delay in delays:
        child = start(home, name)
        try:
            child.wait(delay)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(PULL_SECONDS)
        done.append((len(registry.requests), finished_blobs(home)))
    child = start(home, name)
    assert child.wait(PULL_SECONDS) == 0, f"the last pull failed; killed after {delays}"
    for since, blobs in done:
        twice = fetches(registry, since) & blobs
        assert not twice, f"fetched again: {twice}; killed after {delays}"
    store = ImageStore(home, Settings())
    try:
        assert store.upkeep.verify().damages == ()
        pulled = store.resolve(name)
        assert pulled.id == fake.id
        assert len(store.layer_files(pulled)) == len(fake.tars)
        expected = {digest(data) for data in (*fake.layers, fake.config, fake.manifest)}
        assert finished_blobs(home) == expected
    finally:
        store.close()
