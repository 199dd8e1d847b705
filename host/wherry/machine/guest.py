"""The calls that a machine makes to its agent for itself: set-up, byte code, replacement.

What comes back is not trusted: sizes are bounded, shapes are checked.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from wherry.errors import LinkClosed, LinkError
from wherry.link import Connect
from wherry.machine.argv import DATA_DISK_SERIAL, GUEST_ADDRESS, GUEST_DNS, GUEST_GATEWAY
from wherry.machine.identity import Identity
from wherry.machine.initrd import BYTECODE_LIMIT

ENTROPY_BYTES = 128

_SETUP_TIMEOUT = 300.0
"""The first start makes the file system; one after a crash repairs it."""
_TRANSFER_TIMEOUT = 60.0
_CHUNK = 65536

_T = TypeVar("_T")


class StreamPort(Protocol):
    @property
    def id(self) -> int: ...
    async def read(self, limit: int, /) -> bytes: ...
    async def write(self, data: bytes, /) -> None: ...
    async def end(self) -> None: ...
    def reset(self, reason: str, /) -> None: ...


class LinkPort(Protocol):
    """What is asked of `wherry.link.Link` in this package."""

    @property
    def peer(self) -> dict[str, Any]: ...
    async def call(
        self, method: str, params: dict[str, Any] | None = None, /, *, timeout: float | None = 30.0
    ) -> dict[str, Any]: ...
    def on_connect(self, callback: Callable[[dict[str, Any]], None], /) -> None: ...
    def on_peer_restart(self, callback: Callable[[dict[str, Any]], None], /) -> None: ...
    def redirect(self, connect: Connect, /) -> None: ...
    @property
    def silence(self) -> float: ...
    def refuse(self, error: LinkError | None, /) -> None: ...
    def open_stream(self) -> StreamPort: ...
    async def aclose(self) -> None: ...


def peer_digest(link: LinkPort) -> str:
    """The digest of the agent that answers, empty when it does not say."""
    agent = link.peer.get("agent")
    digest = agent.get("digest") if isinstance(agent, dict) else None
    return digest if isinstance(digest, str) else ""


async def prepare(link: LinkPort) -> None:
    """Have all done that is the same for every machine, before a template is saved."""
    await link.call("system.prepare", {}, timeout=_SETUP_TIMEOUT)


async def set_up(
    link: LinkPort, hostname: str, identity: Identity, *, balloon: bool = False
) -> dict[str, Any]:
    """What an agent needs before anything else: clock, entropy, identity, network, data disk.

    Args:
        balloon: it has one, by which unused memory goes back to the host.
    """
    return await link.call(
        "system.setup",
        {
            "disk_serial": DATA_DISK_SERIAL,
            "time_ns": time.time_ns(),
            "entropy": os.urandom(ENTROPY_BYTES).hex(),
            "hostname": hostname,
            "machine_id": identity.machine_id,
            "balloon": balloon,
            "network": {
                "address": GUEST_ADDRESS,
                "gateway": GUEST_GATEWAY,
                "dns": GUEST_DNS,
                "mac": identity.mac,
            },
        },
        timeout=_SETUP_TIMEOUT,
    )


async def fetch_bytecode(link: LinkPort) -> bytes:
    """The guest's byte code as a cpio archive.

    Raises:
        LinkError: it did not come whole, or is bigger than it can honestly be.
    """

    async def receive(stream: StreamPort) -> bytes:
        parts: list[bytes] = []
        size = 0
        while data := await stream.read(_CHUNK):
            parts.append(data)
            size += len(data)
            if size > BYTECODE_LIMIT:
                raise LinkError(f"the guest sends more than {BYTECODE_LIMIT} bytes of byte code")
        return b"".join(parts)

    return await with_stream(link, "system.bytecode", {}, receive)


async def replace_agent(link: LinkPort, archive: bytes, digest: str) -> None:
    """Give the guest this host's agent and wait until that one answers.

    Raises:
        LinkError: the guest refused, or the new agent does not answer.
    """
    replaced = asyncio.Event()

    def connected(_peer: dict[str, Any]) -> None:
        if peer_digest(link) == digest:
            replaced.set()

    async def send(stream: StreamPort) -> None:
        for start in range(0, len(archive), _CHUNK):
            await stream.write(archive[start : start + _CHUNK])
        await stream.end()

    link.on_connect(connected)
    try:
        await with_stream(link, "agent.replace", {"digest": digest}, send)
    except LinkClosed:
        pass  # the old agent went before its answer was through: the new one decides
    try:
        async with asyncio.timeout(_TRANSFER_TIMEOUT):
            await replaced.wait()
    except TimeoutError as error:
        raise LinkError(
            f"the guest's new agent did not answer within {_TRANSFER_TIMEOUT:.0f} s"
        ) from error


async def older_first_process(link: LinkPort, digest: str) -> str | None:
    """A notice when the guest's PID 1 is not of this host's code; None when it is.

    Only a boot replaces it. Raises LinkError when the guest does not tell.
    """
    pid1 = (await link.call("system.info", {})).get("pid1")
    if not isinstance(pid1, dict) or pid1.get("digest") in (None, digest):
        return None
    return (
        f"the running machine's first process is of another version ({pid1.get('version')}); it"
        " goes on with it: wherry machine stop and start when its containers may end"
    )


async def with_stream(
    link: LinkPort,
    method: str,
    params: dict[str, Any],
    transfer: Callable[[StreamPort], Coroutine[Any, Any, _T]],
) -> _T:
    """Make the call and move its bytes at the same time."""
    stream = link.open_stream()
    calling = asyncio.create_task(
        link.call(method, {**params, "stream": stream.id}, timeout=_TRANSFER_TIMEOUT)
    )
    moving = asyncio.create_task(transfer(stream))
    tasks: set[asyncio.Task[Any]] = {calling, moving}
    try:
        await asyncio.wait(tasks, timeout=_TRANSFER_TIMEOUT, return_when="FIRST_EXCEPTION")
        for task in tasks:
            if task.done():
                task.result()
        if not all(task.done() for task in tasks):
            raise LinkError(f"{method} was not finished within {_TRANSFER_TIMEOUT:.0f} s")
        return moving.result()
    except BaseException:
        stream.reset(f"{method} was given up")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
