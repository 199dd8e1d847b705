"""Fixtures of the contract tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from registry import RunningRegistry, running_registry


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    """Debian's docker-registry on loopback, one for all tests: choose repository names apart."""
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running
