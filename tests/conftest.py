"""For all tests: those that need root on Linux are skipped elsewhere. Puts tests/ on sys.path."""

from __future__ import annotations

import os
import sys

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if sys.platform == "linux" and os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root on Linux")
    for item in items:
        if item.get_closest_marker("guest") is not None:
            item.add_marker(skip)
