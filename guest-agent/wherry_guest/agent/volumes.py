"""Volumes: directories on the data disk, made when they are first used.

Rules: a name is checked before it becomes a path; containers only ever see `_data`, so that what we
keep beside it is not theirs. Who uses which volume is the engine's knowledge.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wherry_guest.agent.calls import Answer, Params
from wherry_guest.agent.kernel import is_safe_name
from wherry_guest.agent.paths import Paths
from wherry_guest.agent.trash import Trash
from wherry_guest.channel import CallError, Channel
from wherry_guest.core.syscalls import Kernel
from wherry_guest.loop import Loop


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
        from wherry_guest.agent.sizes import disk_usage, send_sizes  # here: seldom asked for
        from wherry_guest.agent.worker import Worker

        stream = self._channel().stream(params.number("stream"))
        names = [_checked(name) for name in params.items("names", str)]
        paths = {name: self._paths.volume(name) for name in names}

        def job(out: int) -> None:
            send_sizes(out, paths, disk_usage)

        Worker(self._loop, self._kernel, stream, job, lambda: None)
        return None


def _checked(name: object) -> str:
    if not is_safe_name(name):
        raise CallError("invalid", f"{name!r} is not a volume's name")
    return str(name)
