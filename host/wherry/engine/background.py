"""Work of the image store in a thread, ended when whoever asked for it goes away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class CallerGone(Exception):
    """Raised in the thread, out of a report of progress: nobody waits for the work any more."""


async def in_thread(
    function: Callable[..., T],
    *args: Any,
    progress: Callable[[Any], None] | None = None,
    **options: Any,
) -> T:
    """`function(*args, progress=…, **options)` in a thread.

    When this is cancelled, the function ends at its next report of progress.
    """
    gone = threading.Event()

    def report(event: Any) -> None:
        if gone.is_set():
            raise CallerGone
        if progress is not None:
            progress(event)

    try:
        return await asyncio.to_thread(function, *args, progress=report, **options)
    except asyncio.CancelledError:
        gone.set()
        raise
