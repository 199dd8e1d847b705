"""Deleting directory trees a few entries at a time, between the loop's other work.

Trees come from containers and are hostile: nested deeper than a path may be long, full of links. So
nothing recurses and no link is followed: a directory that is met inside another one is renamed to
the top of the trash and waits for its turn there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from wherry_guest.loop import Loop

ENTRIES_PER_TURN: Final = 64

PATIENCE: Final = 0.05
"""Seconds before it begins: unlinking a big file blocks, and an answer is on its way out."""


class Trash:
    """A directory whose contents go away. It may not exist yet; what is found in it goes too."""

    def __init__(self, loop: Loop, directory: Path) -> None:
        self._loop = loop
        self._directory = directory
        self._work: Iterator[None] | None = None
        self._count = 0
        self._stopped = False

    @property
    def busy(self) -> bool:
        """Whether something is still being deleted."""
        return self._work is not None

    def take(self, path: Path) -> None:
        """Delete `path`, a directory on the same file system; it is gone from its place at once.

        Raises:
            OSError: it could not be renamed. A path that does not exist is fine.
        """
        for _ in range(2):
            try:
                path.rename(self._fresh_name())
            except FileNotFoundError:
                if not path.exists():
                    return
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            else:
                break
        self.empty()

    def empty(self) -> None:
        """Go on with whatever is in the trash."""
        self._stopped = False
        if self._work is None and self._directory.exists():
            self._work = self._delete_all()
            self._loop.call_later(PATIENCE, self._turn)

    def stop(self) -> None:
        """Leave the rest for the next start."""
        self._stopped = True

    def _turn(self) -> None:
        if self._work is None or self._stopped:
            self._work = None
            return
        for _ in range(ENTRIES_PER_TURN):
            try:
                next(self._work)
            except StopIteration:
                self._work = None
                return
        self._loop.call_soon(self._turn)

    def _delete_all(self) -> Iterator[None]:
        """One step per entry. What cannot be deleted (chattr +i) is left where it is."""
        refused: set[str] = set()
        while names := [name for name in _names(self._directory) if name not in refused]:
            for name in names:
                yield from self._delete_tree(self._directory / name)
                if not _try(os.rmdir, self._directory / name):
                    refused.add(name)
                yield

    def _delete_tree(self, top: Path) -> Iterator[None]:
        with os.scandir(top) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    _try(os.rename, entry.path, self._fresh_name())
                else:
                    _try(os.unlink, entry.path)
                yield

    def _fresh_name(self) -> Path:
        while True:
            self._count += 1
            name = self._directory / str(self._count)
            if not name.exists():
                return name


def _names(directory: Path) -> list[str]:
    return [entry.name for entry in os.scandir(directory)]


def _try(operation: object, *paths: object) -> bool:
    """Whether it went well. An immutable file is the container's doing and no reason to stop."""
    assert callable(operation)
    try:
        operation(*paths)
    except OSError:
        return False
    return True
