"""What goes on in a container's life beside its process: health checks, and being paused.

Rule: a change of health is an event, each result only a file: who wants to see the results asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from wherry_guest.agent.children import sleep
from wherry_guest.agent.container import Container
from wherry_guest.agent.health import Monitor
from wherry_guest.agent.probes import Probes
from wherry_guest.channel import CallError, Channel
from wherry_guest.loop import Loop
from wherry_guest.zygote import Zygote

FREEZE_TIMEOUT: Final = 10.0
"""Seconds for every process of a container to stop; one may be in the middle of disk I/O."""

_FREEZE_PAUSE: Final = 0.005


class Lives:
    """The monitors of all containers, and the freezer."""

    def __init__(self, loop: Loop, zygote: Zygote, channel: Callable[[], Channel]) -> None:
        self.probes = Probes(loop, zygote)
        self._loop = loop
        self._channel = channel
        self._monitors: dict[str, Monitor] = {}

    def watch(self, container: Container) -> None:
        """It runs: begin to probe, if it has a check and is not paused."""
        check, health = container.check, container.health
        if check is None or health is None or container.paused:
            return

        def on_result(changed: bool) -> None:
            container.save_health()
            if changed:
                told = {"id": container.id, "started_ns": container.started_ns}
                self._channel().emit("container.health", {**told, **health.as_json()})

        self._monitors[container.id] = Monitor(
            self._loop,
            check,
            health,
            max(0.0, (time.time_ns() - container.started_ns) / 1e9),
            lambda answer: self.probes.run(container.id, container.pid, check, answer),
            on_result,
        )

    def unwatch(self, container: Container) -> None:
        """It has ended, or is paused."""
        if (monitor := self._monitors.pop(container.id, None)) is not None:
            monitor.stop()

    async def pause(self, container: Container) -> None:
        """Stop all its processes where they are.

        Raises:
            CallError: `failed`: they did not stop; then they go on.
        """
        if container.paused:
            return
        cgroup = container.paths.cgroup
        set_frozen(cgroup, True)
        deadline = self._loop.time() + FREEZE_TIMEOUT
        while not is_frozen(cgroup):
            if self._loop.time() > deadline:
                set_frozen(cgroup, False)
                raise CallError("failed", f"container {container.id} cannot be paused: timeout")
            await sleep(self._loop, _FREEZE_PAUSE)
            if not container.running:
                raise CallError("conflict", f"container {container.id} is not running")
        self.unwatch(container)
        container.paused = True
        container.save()

    async def unpause(self, container: Container) -> None:
        """Let them go on."""
        if not container.paused:
            return
        set_frozen(container.paths.cgroup, False)
        container.paused = False
        container.save()
        self.watch(container)


def set_frozen(cgroup: Path, frozen: bool) -> None:
    """cgroup.freeze (Documentation/admin-guide/cgroup-v2.rst). Raises OSError."""
    (cgroup / "cgroup.freeze").write_text("1" if frozen else "0")


def is_frozen(cgroup: Path) -> bool:
    """Whether every process in it has stopped; False when there is no such cgroup."""
    try:
        return "frozen 1" in (cgroup / "cgroup.events").read_text()
    except OSError:
        return False
