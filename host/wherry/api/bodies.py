"""Between the event loop and the threads that do slow work: bodies in both directions.

The image store is synchronous and runs in threads; requests and answers are the event loop's.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator, Iterator

from wherry.errors import InvalidInput


class UploadCut(InvalidInput):
    """The client went away in the middle of an upload."""


def blocking(chunks: AsyncIterator[bytes]) -> Iterator[bytes]:
    """The pieces of a request's body for a worker thread. Call this in the event loop.

    Raises:
        UploadCut: while iterating, when the client or the request is gone.
    """
    loop = asyncio.get_running_loop()

    async def following() -> bytes | None:
        return await anext(chunks, None)

    def pieces() -> Iterator[bytes]:
        while True:
            try:
                piece = asyncio.run_coroutine_threadsafe(following(), loop).result()
            except (ConnectionError, concurrent.futures.CancelledError, RuntimeError) as error:
                raise UploadCut("the upload ended early") from error
            if piece is None:
                return
            yield piece

    return pieces()


async def from_thread(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """What a (slow) iterator yields, each step made in a thread; it is closed in any case."""
    try:
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            await asyncio.to_thread(close)
