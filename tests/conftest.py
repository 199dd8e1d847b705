"""For all tests: those that need root on Linux are skipped elsewhere; the shared WHERRY_HOME.

One engine and one VM serve the whole run, also one that is spread over processes: all tests of the
shared machine go to the same one (`--dist loadgroup`), the others file by file. What is expensive
and addressed by content (packages, VM images) is kept between runs in `.cache/tests`, or where
WHERRY_TEST_CACHE says.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ROOT, Wherry

from wherry.paths import Home


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        shares_machine = "wherry" in getattr(item, "fixturenames", ())
        if item.get_closest_marker("xdist_group") is None:
            group = "machine" if shares_machine else item.path.name
            item.add_marker(pytest.mark.xdist_group(group))
    if sys.platform == "linux" and os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root on Linux")
    for item in items:
        if item.get_closest_marker("guest") is not None:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def test_cache() -> Path:
    """The directory that outlives runs."""
    cache = Path(os.environ.get("WHERRY_TEST_CACHE") or ROOT / ".cache" / "tests")
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    return cache


@pytest.fixture(scope="session")
def wherry(test_cache: Path) -> Iterator[Wherry]:
    """The commands on a state directory of this run; the machine has 1 GiB and 2 CPUs."""
    root = Path(tempfile.mkdtemp(prefix="wh-"))
    (root / "config.yml").write_text("memory_mib: 1024\ncpus: 2\n")
    (root / "cache").symlink_to(test_cache)
    it = Wherry(Home(root))
    yield it
    it.run("machine", "rm", "--force", timeout=60)
    shutil.rmtree(root, ignore_errors=True)
