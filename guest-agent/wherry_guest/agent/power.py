"""`system.shutdown`: from running containers to a machine that is off, nothing half-written."""

from __future__ import annotations

import errno
import os
import signal
from typing import Any, Final

from wherry_guest.agent.children import sleep
from wherry_guest.agent.container import Container
from wherry_guest.agent.containers import Containers
from wherry_guest.agent.kernel import kill_cgroup
from wherry_guest.agent.layers import Layers
from wherry_guest.agent.paths import Paths
from wherry_guest.agent.tasks import Promise
from wherry_guest.agent.trimming import trim
from wherry_guest.channel import CallError, Channel
from wherry_guest.core.syscalls import MS_RDONLY, MS_REMOUNT, Kernel
from wherry_guest.loop import Loop
from wherry_guest.zygote import Zygote

_os: Final[Any] = os

_SIGKILL: Final = 9  # Windows' signal module has no name for it

KILL_TIMEOUT: Final = 5.0
"""Seconds for what was killed to be gone."""

DELIVERY_TIMEOUT: Final = 2.0
"""Seconds for the host to receive the last exits."""

UNMOUNT_TIMEOUT: Final = 2.0
"""Seconds for the ended containers' mount namespaces to let go of the data disk."""


TRIM_SECONDS: Final = 0.3
"""For giving back what was deleted; a stop should not take longer for it."""


async def shut_down(
    loop: Loop,
    kernel: Kernel,
    paths: Paths,
    zygote: Zygote,
    channel: Channel,
    containers: Containers,
    layers: Layers,
    timeout: float,
) -> None:
    """Stop what runs (SIGTERM, after `timeout` seconds SIGKILL), sync, unmount, power off."""
    await containers.close()
    for container in containers.alive():
        _signal(container, signal.SIGTERM)
    await _until_gone(loop, containers, timeout)
    for container in containers.alive():
        if not kill_cgroup(container.paths.cgroup):
            _signal(container, _SIGKILL)
    await _until_gone(loop, containers, KILL_TIMEOUT)
    await _delivered(channel)
    if paths.ssh_cgroup.exists():  # last, since the link may run through it
        kill_cgroup(paths.ssh_cgroup)
    containers.detach()
    layers.unmount_all()
    _os.sync()
    if os.path.ismount(paths.data):
        await _trim(loop, str(paths.data))
        await _unmount_data(loop, kernel, str(paths.data))
    _os.sync()
    zygote.poweroff()


async def _trim(loop: Loop, target: str) -> None:
    try:
        await trim(loop, target, TRIM_SECONDS)
    except OSError:
        pass  # its room stays with it until the next time


def _signal(container: Container, number: int) -> None:
    try:
        container.kill(number)
    except CallError:
        pass  # it has just ended by itself


async def _until_gone(loop: Loop, containers: Containers, timeout: float) -> None:
    deadline = loop.time() + timeout
    while containers.alive() and loop.time() < deadline:
        await sleep(loop, 0.02)


def _delivered(channel: Channel) -> Promise[None]:
    done: Promise[None] = Promise()
    channel.when_settled(lambda: done.resolve(None), DELIVERY_TIMEOUT)
    return done


async def _unmount_data(loop: Loop, kernel: Kernel, target: str) -> None:
    deadline = loop.time() + UNMOUNT_TIMEOUT
    while True:
        try:
            kernel.umount(target)
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        if loop.time() > deadline:
            break
        await sleep(loop, 0.05)
    kernel.mount(None, target, None, MS_REMOUNT | MS_RDONLY, None)
