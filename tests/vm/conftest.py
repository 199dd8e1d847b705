"""The VM that tests in this directory share: a home in a short path, an event loop, a machine.

Packages and built VM images are kept between runs (`test_cache`), so that nothing is fetched twice.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from vm_loop import LoopThread

from wherry.machine import Machine
from wherry.paths import Home
from wherry.settings import Settings


@pytest.fixture(scope="session")
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="session")
def vm_home(test_cache: Path) -> Iterator[Home]:
    """A home of its own, whose caches are those of all test runs."""
    root = Path(tempfile.mkdtemp(prefix="wherry-vm-"))
    (root / "cache").symlink_to(test_cache.absolute())
    yield Home(root)
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def vm_settings() -> Settings:
    return Settings(cpus=2, memory_mib=1024)


@pytest.fixture(scope="session")
def machine(vm_home: Home, vm_settings: Settings, loop: LoopThread) -> Iterator[Machine]:
    """A running machine for all tests of the run, a restored one: leave it as you found it."""

    made = Machine("shared", vm_home, vm_settings)

    async def start() -> None:
        await made.ensure_running()
        if not made.inspect()["restored"]:
            await made.save_template()
            await made.stop()
            await made.ensure_running()
        assert made.inspect()["restored"]

    async def end() -> None:
        await made.stop()
        await made.aclose()

    try:
        loop.run(start(), timeout=300)
        yield made
    finally:
        loop.run(end())
