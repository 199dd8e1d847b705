"""`agent.replace`: another agent's code comes over a stream and takes this one's place.

Rules: nothing is asked of PID 1 before the code is complete and is what its digest says; containers
do not notice (PID 1 holds them and their descriptors); the link reconnects to the new agent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from wherry_guest import identity
from wherry_guest.agent import cpio
from wherry_guest.agent.calls import Answer, Params
from wherry_guest.agent.kernel import is_safe_name
from wherry_guest.agent.tasks import Promise
from wherry_guest.channel import CallError, Channel, GuestStream
from wherry_guest.zygote import Zygote

MAX_BYTES: Final = 32 * 1024 * 1024
"""More than any agent has; it is held in memory."""

GOODBYE: Final = 2.0
"""Seconds that the host is given to receive the answer before this process is replaced."""


async def replace(
    params: Params, channel: Channel, zygote: Zygote, directory: Path, own_digest: str
) -> Answer:
    """Serve `agent.replace`.

    Args:
        directory: where agents are unpacked, one directory for each digest.

    Raises:
        CallError: `invalid`: not an archive, or not the one that the digest names.
    """
    stream = channel.stream(params.number("stream"))
    digest = params.identifier("digest")
    archive = await receive(stream)
    if digest == own_digest:
        return None
    target = directory / digest
    try:
        unpack(archive, target)
    except cpio.CpioError as error:
        raise CallError("invalid", f"the agent's archive: {error}") from error
    found = identity.digest(target)
    if found != digest:
        raise CallError("invalid", f"the archive's digest is {found}, not {digest}")
    channel.when_settled(lambda: zygote.replace_agent(str(target), digest), GOODBYE)
    return None


def unpack(archive: bytes, target: Path) -> None:
    """Write the archive's files below a directory `wherry_guest`, wherever that lies in it.

    So the archive may be the one that a machine boots with; what else is in that is left out.

    Raises:
        CpioError: it is none, or has a name that no module has.
    """
    for name, data in cpio.unpack(archive):
        _, found, rest = f"/{name}".partition("/wherry_guest/")
        if not found:
            continue
        if not all(map(_is_module_name, rest.split("/"))):
            raise cpio.CpioError(f"{name!r} is no file of wherry_guest")
        path = target / "wherry_guest" / rest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def receive(stream: GuestStream, limit: int = MAX_BYTES) -> Promise[bytes]:
    """All that the host sends on the stream, once it has half-closed it; then ours is closed too.

    The promise is rejected with CallError when there is too much, or the stream is reset.
    """
    received: Promise[bytes] = Promise()
    chunks: list[bytes] = []
    size = 0

    def take(data: bytes) -> None:
        nonlocal size
        size += len(data)
        if size <= limit:
            chunks.append(data)
        elif not received.settled:
            chunks.clear()
            stream.reset("too much data")
            received.reject(CallError("invalid", f"more than {limit} bytes came"))

    def end() -> None:
        stream.end()
        received.resolve(b"".join(chunks))

    stream.on_data(take)
    stream.on_end(end)
    stream.on_reset(lambda reason: received.reject(CallError("failed", f"stream: {reason}")))
    return received


def send(stream: GuestStream, data: bytes, piece: int = 64 * 1024) -> Promise[None]:
    """Send all of `data` as credit comes, then half-close. A reset settles it, too."""
    sent: Promise[None] = Promise()
    view = memoryview(data)

    def go_on() -> None:
        nonlocal view
        while view:
            chunk, view = bytes(view[:piece]), view[piece:]
            if not stream.write(chunk):
                return
        if not sent.settled:
            stream.end()
            sent.resolve(None)

    stream.on_writable(go_on)
    stream.on_reset(lambda reason: sent.resolve(None))
    go_on()
    return sent


def _is_module_name(part: str) -> bool:
    return is_safe_name(part) or (part.startswith("__") and is_safe_name(part.strip("_")))
