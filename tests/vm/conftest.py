"""The VM that tests in this directory share: a home in a short path, an event loop, a machine.

Packages and built VM images are kept between runs (`test_cache`), so that nothing is fetched twice.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from wherry.machine import Machine
from wherry.paths import Home
from wherry.settings import Settings

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread of its own, so that links stay alive between the calls of a test."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="event loop")
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout: float = 100.0) -> T:
        """Run a coroutine there and return its result; TimeoutError after so many seconds."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


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
    """A running machine for all tests of the run: leave it as you found it."""

    async def make() -> Machine:
        made = Machine("shared", vm_home, vm_settings)
        await made.ensure_running()
        return made

    async def end(made: Machine) -> None:
        await made.stop()
        await made.aclose()

    made = loop.run(make(), timeout=300)
    yield made
    loop.run(end(made))
