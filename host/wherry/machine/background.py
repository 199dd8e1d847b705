"""Tasks that belong to an object, listeners that may fail, progress that a thread reports."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class Background:
    """Tasks that end with their owner."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def aclose(self) -> None:
        """Cancel what still goes on, and wait for its end."""
        tasks = [task for task in self._tasks if not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it gets it; nobody may


def tell(callbacks: Iterable[Callable[[_T], object]], news: _T) -> None:
    """Tell each; a listener's fault must not leave the teller half-way."""
    for callback in tuple(callbacks):
        try:
            callback(news)
        except Exception:
            logger.exception("a listener fails")


def in_loop(
    progress: Callable[[str, int, int], None] | None,
) -> Callable[[str, int, int], None] | None:
    """Progress that a thread can report to the running loop."""
    if progress is None:
        return None
    loop = asyncio.get_running_loop()

    def report(phase: str, done: int, total: int) -> None:
        loop.call_soon_threadsafe(progress, phase, done, total)

    return report
