"""Fixtures of the guest tests: one zygote with a busybox layer for a whole module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from containers_harness import Machine, open_machine


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    opened = open_machine(tmp_path_factory.mktemp("zygote"))
    yield opened
    opened.close()
