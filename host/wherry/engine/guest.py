"""The engine's way to the machine: a link when one is needed, layers in place, typed answers.

What comes from the guest is checked here and in `registry.Exit`: the guest is not trusted.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from wherry.engine.model import Container, Json
from wherry.engine.ports import LinkPort, MachinePort, StorePort, StreamPort
from wherry.errors import AgentError, LinkError, MachineError
from wherry.images.platform import parse_platform
from wherry.images.store import Image
from wherry.link import StreamReset
from wherry.machine import LayerDisk, MachineState
from wherry.machine.pausing import StillPaused

log = logging.getLogger(__name__)

START_TIMEOUT = 120.0
"""Seconds for `container.start` and `exec.start`: under emulation a big root takes its time."""

_SIZES_LIMIT = 64 << 20


class Guest:
    """The machine and its agent, as the engine sees them."""

    def __init__(self, machine: MachinePort, store: StorePort) -> None:
        self._machine = machine
        self._store = store

    @property
    def link(self) -> LinkPort | None:
        """The link, None while the machine is off."""
        link: LinkPort | None = self._machine.link
        return link

    @property
    def steady_link(self) -> LinkPort | None:
        """The link, unless the machine is on its way down: its disk may be closed already."""
        return self.link if self._machine.state is MachineState.RUNNING else None

    def need_link(self) -> LinkPort:
        """The link of a machine that runs, and is not paused. Raises MachineError."""
        self.need_moving()
        link = self.link
        if link is None:
            raise MachineError("the machine is not running", hint="start it: wherry machine start")
        return link

    def need_moving(self) -> None:
        """Raises StillPaused (a MachineError) when the machine runs and is paused."""
        if self._machine.paused is not None:
            raise StillPaused(self._machine.paused)

    async def running_link(self) -> LinkPort:
        """The link; the machine is started when it is off. Raises MachineError."""
        link: LinkPort = await self._machine.ensure_running(_log_progress)
        return link

    async def prepare(
        self, container: Container, holder: str | None = None
    ) -> tuple[LinkPort, list[str]]:
        """A running machine with the container's layers mounted; they stay until `release`, or
        until `unpin(holder)` where somebody else than the container holds them.

        Returns:
            The link, and the diffIDs to stack, lowest first.
        """
        boot = asyncio.ensure_future(self.running_link())
        try:
            # In a thread, while the machine boots: missing layer files are made again here.
            files = await asyncio.to_thread(self._store.layer_files, image_of(container))
            link = await boot
        except BaseException:
            boot.cancel()
            await asyncio.gather(boot, return_exceptions=True)
            raise
        disks = [LayerDisk(file.diff_id, file.path, file.uuid) for file in files]
        layers = [disk.diff_id for disk in disks]
        self._machine.pin_layers(holder or container.id, layers)
        await self._machine.attach_layers(disks)
        return link, layers

    def pin(self, container: Container) -> None:
        """Its layers are in use (found so when a running machine was adopted)."""
        self._machine.pin_layers(container.id, list(container.layers))

    def release(self, container: Container) -> None:
        """Its layers may be unplugged."""
        self.unpin(container.id)

    def unpin(self, holder: str) -> None:
        """What `holder` held (perhaps nothing) may be unplugged."""
        self._machine.unpin_layers(holder)


def image_of(container: Container) -> Image:
    """The container's image as it was at its creation; its name may be gone, its files are held."""
    platform = parse_platform(container.platform)
    return Image(
        id=container.image_id,
        tags=(),
        digests=(),
        created_ns=0,
        architecture=platform.architecture,
        os=platform.os,
        variant=platform.variant,
        size=0,
        config={},
        diff_ids=container.layers,
        manifest_digest=container.manifest_digest,
        raw_config=b"",
    )


async def open_log(
    link: LinkPort, container_id: str, position: str | int, *, follow: bool, stdin: bool = False
) -> tuple[StreamPort, int]:
    """`container.attach` on a new stream: the stream and the log offset where it begins.

    Raises:
        AgentError: `not_found`: the guest does not have the container.
    """
    stream = link.open_stream()
    try:
        result = await link.call(
            "container.attach",
            {
                "id": container_id,
                "stream": stream.id,
                "stdin": stdin,
                "from": position,
                "follow": follow,
            },
        )
    except BaseException:
        stream.reset("attach failed")
        raise
    return stream, number(result, "offset")


async def log_end(link: LinkPort, container_id: str) -> int:
    """The length of a container's log; 0 when the guest has none."""
    try:
        stream, offset = await open_log(link, container_id, "now", follow=False)
    except AgentError as error:
        if error.code == "not_found":
            return 0
        raise
    stream.reset("only its end was wanted")
    return offset


async def read_sizes(link: LinkPort, method: str, params: Json) -> dict[str, int]:
    """The JSON object {name: bytes} that a call puts on its stream. Raises LinkError."""
    stream = link.open_stream()
    try:
        await link.call(method, {**params, "stream": stream.id}, timeout=START_TIMEOUT)
        text = bytearray()
        while data := await stream.read(1 << 16):
            text += data
            if len(text) > _SIZES_LIMIT:
                raise LinkError(f"the guest's answer to {method} does not end")
        return {str(name): int(size) for name, size in json.loads(text or b"{}").items()}
    except StreamReset as error:
        raise LinkError(f"{method}: {error.reason}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise LinkError(f"the guest's answer to {method} is malformed") from error
    finally:
        stream.reset("nobody reads on")


def number(result: Any, name: str) -> int:
    """A number of an answer. Raises LinkError when it is none."""
    value = result.get(name) if isinstance(result, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise LinkError(f"the guest's answer has no valid {name}")
    return value


def _log_progress(phase: str, done: int, total: int) -> None:
    log.debug("machine: %s %d/%d", phase, done, total)
