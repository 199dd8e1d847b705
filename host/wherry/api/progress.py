"""Progress of work that runs in threads or tasks, as an async iterator of JSON objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

Message = Mapping[str, Any]
Report = Callable[[Message], None]
"""Callable from any thread."""


async def with_progress(
    work: Callable[[Report], Awaitable[Message | None]],
) -> AsyncIterator[Message]:
    """Run `work`; yield what it reports, in order, then its result. Its error is raised at the end.

    When the consumer stops early, the work is cancelled.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Message | None] = asyncio.Queue()

    def report(message: Message) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, message)

    async def run() -> Message | None:
        try:
            return await work(report)
        finally:
            # Through the same door as the reports, so that it comes after all of them.
            loop.call_soon_threadsafe(queue.put_nowait, None)

    task = asyncio.ensure_future(run())
    try:
        while (message := await queue.get()) is not None:
            yield message
        if last := await task:
            yield last
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
