"""For all tests: those that need root on Linux are skipped elsewhere; the shared WHERRY_HOME.

One engine and one VM serve the whole run, or one for each process that it is spread over (`-n`).
What is expensive and addressed by content (packages, VM images) is kept between runs in
`.cache/tests`, or where WHERRY_TEST_CACHE says.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, Wherry

from wherry.paths import Home

_ORDER = ("contract", "wine", "guest", "soak", "unit", "vm")
"""Directories: what is one long piece comes early; tests in `vm` have children until the end."""
_LONG = (
    "test_bootstrap.py", "test_oci_in_the_machine.py", "test_escapes.py", "test_transports.py",
    "test_vm_template.py", "test_cli_machines.py", "test_neighbouring_versions.py",
    "test_vmimage_boot.py", "test_vm_layers.py", "test_cli_run.py", "test_cli_snapshot.py",
)  # fmt: skip
"""Files that come first in their directory, so that what is last is short: else one process waits
for the other at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_place)
    if sys.platform == "linux" and os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root on Linux")
    for item in items:
        if item.get_closest_marker("guest") is not None:
            item.add_marker(skip)


def _place(item: pytest.Item) -> tuple[int, int]:
    directory, name = item.path.parent.name, item.path.name
    return _ORDER.index(directory), _LONG.index(name) if name in _LONG else len(_LONG)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """File by file, in order; what runs under Wine shares one prefix, so it stays together."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "wine" if "/wine/" in file else file

    return Files(config, log)


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
