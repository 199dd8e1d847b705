"""Containers of one VM by the agent's calls alone: no engine, no API, no command line.

The specs are the engine's own, so what is measured here is what the engine asks for.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from wherry.engine.model import Container
from wherry.engine.spec import Facts, runtime_spec, start_params
from wherry.images.erofs import layer_uuid, write_erofs
from wherry.link.mux import AgentEvent
from wherry.machine import LayerDisk, Machine

LIMITS = {"Memory": 256 << 20, "PidsLimit": 100, "NanoCpus": 1_000_000_000}
"""Docker's HostConfig of every measured container, ours and the reference's."""

START_SECONDS = 60.0
END_SECONDS = 60.0

_ids = itertools.count(1)


def container(*command: str, **host_config: Any) -> Container:
    """A container of the engine's, with a fresh id."""
    return Container(
        id=f"{next(_ids):064x}",
        name="bench",
        created_ns=0,
        image="bench",
        image_id="",
        manifest_digest="",
        config={"Cmd": list(command), "OpenStdin": bool(host_config.pop("OpenStdin", False))},
        host_config=host_config,
        layers=(),
    )


def measured(*command: str) -> Container:
    """A container as it is measured: limits, Docker's default capabilities and paths."""
    return container(*command, **LIMITS)


def bundle_config(*command: str) -> dict[str, Any]:
    """The config.json of an OCI bundle for the reference: the same spec."""
    return runtime_spec(measured(*command), Facts())


def layer(tar: Path, directory: Path) -> LayerDisk:
    """A layer tar as an EROFS file in `directory`."""
    diff_id = f"sha256:{next(_ids):032x}{tar.stat().st_size:032x}"  # any name that is its own
    uuid = layer_uuid(diff_id)
    path = directory / f"{diff_id[7:39]}.erofs"
    with tar.open("rb") as source, path.open("wb") as out:
        write_erofs(source, out, uuid=uuid.bytes)
    return LayerDisk(diff_id, path, str(uuid))


class GuestContainers:
    """Starts containers and processes, and hears of their ends."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        link: Any = machine.link
        self.link = link
        self._ends: dict[str, asyncio.Future[int]] = {}
        link.on_event(self._event)

    async def start(self, it: Container, layers: Sequence[LayerDisk]) -> None:
        """`container.start`; its layers are plugged in first."""
        await self.machine.attach_layers(layers)
        params = start_params(it, [layer.diff_id for layer in layers], Facts())
        await self.link.call("container.start", params, timeout=START_SECONDS)

    async def run(self, it: Container, layers: Sequence[LayerDisk]) -> None:
        """Start, wait for the event of its end, remove.

        Raises:
            AssertionError: it did not end with 0.
        """
        params = start_params(it, [layer.diff_id for layer in layers], Facts())
        ended = self._end_of(it.id)
        await self.link.call("container.start", params, timeout=START_SECONDS)
        code = await asyncio.wait_for(ended, END_SECONDS)
        await self.link.call("container.remove", {"id": it.id})
        assert code == 0, f"container {it.id} ended with {code}"

    async def exec(self, it: Container, *command: str) -> None:
        """One more process in a running container, to its end. AssertionError when it failed."""
        exec_id = f"exec-{next(_ids)}"
        ended = self._end_of(exec_id)
        process = {**runtime_spec(it, Facts())["process"], "args": list(command)}
        params = {"exec_id": exec_id, "id": it.id, "process": process, "tty": False}
        await self.link.call(
            "exec.start", {**params, "stream": None, "stdin": False, "size": None}, timeout=60.0
        )
        assert await asyncio.wait_for(ended, END_SECONDS) == 0

    async def end(self, it: Container) -> None:
        """SIGKILL, wait, remove."""
        ended = self._end_of(it.id)
        await self.link.call("container.kill", {"id": it.id, "signal": 9})
        await asyncio.wait_for(ended, END_SECONDS)
        await self.link.call("container.remove", {"id": it.id})

    def _end_of(self, id: str) -> asyncio.Future[int]:
        return self._ends.setdefault(id, asyncio.get_running_loop().create_future())

    async def _event(self, event: AgentEvent) -> None:
        payload = event.payload
        if event.name == "container.exit":
            waiting = self._ends.pop(payload["id"], None)
        elif event.name == "exec.exit":
            waiting = self._ends.pop(payload["exec_id"], None)
        else:
            return
        if waiting is not None and not waiting.done():
            waiting.set_result(payload["exit_code"])


@asynccontextmanager
async def running(machine: Machine) -> AsyncIterator[GuestContainers]:
    """The machine, started; stopped with the block."""
    try:
        await machine.ensure_running()
        yield GuestContainers(machine)
    finally:
        await machine.stop()
        await machine.aclose()
