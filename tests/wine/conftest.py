"""Fixtures of the Wine tier."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry import RunningRegistry, running_registry
from wine_tier import Windows, windows


@pytest.fixture(scope="session")
def windows_python(test_cache: Path) -> Iterator[Windows]:
    tier = windows(test_cache)
    with tier.booted():
        yield tier


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def windows_home(test_cache: Path) -> Iterator[Path]:
    """Longer than Windows likes, with letters and spaces that QEMU does not."""
    temporary = Path(tempfile.mkdtemp(prefix="wh-wine-"))
    root = temporary.joinpath(*[f"Jürgens Петр {'x' * 32}"] * 6)
    assert len(str(root)) > 260
    root.mkdir(parents=True)
    (root / "config.yml").write_text("memory_mib: 1024\ncpus: 2\ntemplate: false\n")
    (root / "cache").symlink_to(test_cache)
    yield root
    shutil.rmtree(temporary, ignore_errors=True)
