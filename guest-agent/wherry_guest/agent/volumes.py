"""Volumes: directories on the data disk, made when they are first used.

Rules: a name is checked before it becomes a path; containers only ever see `_data`, so that what we
keep beside it is not theirs. Who uses which volume is the engine's knowledge.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wherry_guest.agent.calls import Answer, Params
from wherry_guest.agent.kernel import is_safe_name
from wherry_guest.agent.paths import Paths
from wherry_guest.agent.trash import Trash
from wherry_guest.channel import CallError, Channel
from wherry_guest.core.syscalls import Kernel
from wherry_guest.loop import Loop

_BLOCK = 512
"""Bytes in a unit of st_blocks, stat(2)."""


class Volumes:
    """The volumes of this machine.

    Args:
        channel: gives the channel, once there is one.
    """

    def __init__(
        self,
        loop: Loop,
        kernel: Kernel,
        paths: Paths,
        trash: Trash,
        channel: Callable[[], Channel],
    ) -> None:
        self._loop = loop
        self._kernel = kernel
        self._paths = paths
        self._trash = trash
        self._channel = channel

    def data(self, name: object) -> Path:
        """The directory that containers see, made when it is missing. Raises CallError, OSError."""
        path = self._paths.volume(_checked(name)) / "_data"
        if not path.is_dir():
            self._paths.volumes.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        return path

    def remove(self, params: Params) -> Answer:
        """`volume.remove`; the deleting itself goes on after the answer."""
        self._trash.take(self._paths.volume(_checked(params.text("name"))))
        return None

    def usage(self, params: Params) -> Answer:
        """`volume.usage`: counted in a process of its own."""
        from wherry_guest.agent.worker import Worker  # here: seldom asked for

        stream = self._channel().stream(params.number("stream"))
        names = [_checked(name) for name in params.items("names", str)]
        paths = {name: self._paths.volume(name) for name in names}

        def job(out: int) -> None:
            sizes = {name: disk_usage(path) for name, path in paths.items() if path.is_dir()}
            os.write(out, json.dumps(sizes).encode())

        Worker(self._loop, self._kernel, stream, job, lambda: None)
        return None


def disk_usage(top: Path) -> int:
    """Bytes that a tree occupies, a file with several names once. Nothing recurses: a container
    may have nested it as deep as it liked; what cannot be read is left out."""
    total, seen = 0, set()
    stack: list[int] = [os.open(top, os.O_RDONLY)]
    while stack:
        directory = stack.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                status: Any = entry.stat(follow_symlinks=False)
                key = (status.st_dev, status.st_ino)
                if status.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                    if key in seen:
                        continue
                    seen.add(key)
                total += status.st_blocks * _BLOCK
                if entry.is_dir(follow_symlinks=False):
                    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
                    stack.append(os.open(entry.name, flags, dir_fd=directory))
        os.close(directory)
    return total


def _checked(name: object) -> str:
    if not is_safe_name(name):
        raise CallError("invalid", f"{name!r} is not a volume's name")
    return str(name)
