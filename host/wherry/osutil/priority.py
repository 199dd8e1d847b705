"""Work that may wait: a process that gets the processor when nobody else wants it."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

_LOWEST = 19
"""setpriority(2), getpriority on macOS."""


def lower_priority(pid: int) -> None:
    """Give the process, and the threads that it has, the lowest priority. It may have ended.

    On Windows nothing happens: nothing of ours asks for it there.
    """
    if sys.platform == "win32":
        return
    threads = [pid]
    if sys.platform == "linux":  # there the priority is a thread's own
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            threads = [int(it.name) for it in Path(f"/proc/{pid}/task").iterdir()]
    for thread in threads:
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, thread, _LOWEST)
