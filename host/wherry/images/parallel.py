"""Transfers side by side, in threads; the first that fails ends them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from wherry.images.progress import Reporter

_T = TypeVar("_T")


def for_each(
    items: Iterable[_T], work: Callable[[_T], None], *, at_once: int, name: str, reporter: Reporter
) -> None:
    """Do `work` for every item, begun in their order, at most `at_once` at a time.

    Args:
        name: of the threads.
        reporter: its `stop` is set when one has failed, or this thread was interrupted.

    Raises:
        The first error of any; what had not begun by then does not.
    """
    with ThreadPoolExecutor(at_once, name) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            reporter.stop.set()
            for future in futures:
                future.cancel()
            raise
