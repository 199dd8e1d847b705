"""Fixtures of the contract tests."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry import RunningRegistry, running_registry


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    """Debian's docker-registry on loopback, one for all tests: choose repository names apart."""
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def podman_root() -> Iterator[Path]:
    """A storage of podman's own: it wants a path of at most 50 characters for its run root."""
    directory = Path(tempfile.mkdtemp(prefix="wh-podman-", dir="/tmp"))
    yield directory
    subprocess.run(["rm", "-rf", directory], check=True)  # it holds files that nobody may read
