"""How big trees are. Runs in a child of the agent: it blocks.

Rules: nothing recurses, a container may have nested its files as deep as it liked; no link is
followed; a file with several names counts once; what goes while it is counted is left out.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

_BLOCK: Final = 512
"""Bytes in a unit of st_blocks, stat(2)."""

_DIRECTORY: Final = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_DIRECTORY", 0)


def disk_usage(top: Path) -> int:
    """Bytes that a tree occupies; its top does not count."""
    return sum(status.st_blocks * _BLOCK for status in _statuses(top))


def content_size(top: Path) -> int:
    """Bytes of the files in a tree, as long as they are; directories are nothing."""
    return sum(status.st_size for status in _statuses(top) if not stat.S_ISDIR(status.st_mode))


def send_sizes(out: int, trees: Mapping[str, Path], size: Callable[[Path], int]) -> None:
    """On `out` a JSON object {key: bytes} of the trees that exist and can be counted."""
    sizes = {}
    for key, path in trees.items():
        try:
            sizes[key] = size(path)
        except OSError:  # it is not there, or a container has made it too deep to be walked
            continue
    view = memoryview(json.dumps(sizes).encode())
    while view:
        view = view[os.write(out, view) :]


def _statuses(top: Path) -> Iterator[Any]:
    """Of all that is in it. As many directories are open as they are deep."""
    seen = set()
    stack = [_Level(os.open(top, _DIRECTORY))]
    try:
        while stack:
            entry = next(stack[-1].entries, None)
            if entry is None:
                stack.pop().close()
                continue
            try:
                status: Any = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    stack.append(_Level(os.open(entry.name, _DIRECTORY, dir_fd=stack[-1].fd)))
            except (FileNotFoundError, NotADirectoryError):
                continue
            key = (status.st_dev, status.st_ino)
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                if key in seen:
                    continue
                seen.add(key)
            yield status
    finally:
        for level in stack:
            level.close()


class _Level:
    """A directory that is being walked; owns the descriptor."""

    __slots__ = ("entries", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.entries = os.scandir(fd)

    def close(self) -> None:
        self.entries.close()
        os.close(self.fd)
