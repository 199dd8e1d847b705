"""How a long step tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) in the thread that called us; `what` is index, download, unpack
or write."""


def nobody_watches(what: str, done: int, total: int) -> None:
    """The progress of a caller who wants none."""
