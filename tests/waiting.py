"""Waiting for what others do, with a deadline. Stdlib only: it also runs in the VM."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

PATIENCE = float(os.environ.get("WHERRY_TEST_PATIENCE", "1"))
"""What deadlines are multiplied by, where everything is slow: in an emulated machine."""


def eventually(what: str, condition: Callable[[], object], seconds: float = 20.0) -> object:
    """Wait until `condition()` is truthy; its value. The error after the deadline names `what`."""
    deadline = time.monotonic() + seconds * PATIENCE
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds * PATIENCE} s: {what}")
        time.sleep(0.02)
