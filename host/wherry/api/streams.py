"""Byte streams of attach, exec and logs: framing, relaying, detach keys, time stamps.

Without a TTY Docker multiplexes stdout and stderr: each piece has an 8-byte header, the stream's
number, three zero bytes and the length (big-endian). With a TTY the bytes are raw.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from wherry.api.http import RawConnection
from wherry.api.timefmt import rfc3339
from wherry.detachkeys import DetachScanner

if TYPE_CHECKING:
    from wherry.engine.model import Attachment, LogFrame

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
_HEADER = struct.Struct(">BxxxI")


def content_type(tty: bool, version: tuple[int, int]) -> str:
    """API versions before 1.42 know one type only."""
    return RAW if tty or version < (1, 42) else MULTIPLEXED


def multiplexed(stream: int, payload: bytes) -> bytes:
    return _HEADER.pack(stream, len(payload)) + payload


async def relay(
    attachment: Attachment, connection: RawConnection, *, stdin: bool, detach_keys: bytes
) -> None:
    """Carry bytes both ways until the output ends, or the client leaves or detaches."""
    output = asyncio.ensure_future(_output(attachment, connection))
    tasks = [output]
    if stdin:
        tasks.append(asyncio.ensure_future(_input(attachment, connection, detach_keys)))
    else:
        tasks.append(asyncio.ensure_future(_until_closed(connection)))
    try:
        pending = set(tasks)
        while output in pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {output}:
                if task.result():
                    return
        await output
    except ConnectionError:
        pass  # the client is gone: the container goes on
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await attachment.aclose()


async def _output(attachment: Attachment, connection: RawConnection) -> bool:
    async for stream, payload in attachment.frames():
        await connection.write(payload if attachment.tty else multiplexed(stream, payload))
    return True


async def _input(attachment: Attachment, connection: RawConnection, detach_keys: bytes) -> bool:
    """True when the client asked to detach."""
    scanner = DetachScanner(detach_keys) if attachment.tty and detach_keys else None
    while data := await connection.read():
        detached = False
        if scanner is not None:
            data, detached = scanner.feed(data)
        if data:
            await attachment.write(data)
        if detached:
            return True
    await attachment.end_input()
    return False


async def _until_closed(connection: RawConnection) -> bool:
    """A client that only listens may half-close at once: its end of file says nothing."""
    while await connection.read():
        pass
    return False


async def log_bytes(
    frames: AsyncIterator[LogFrame], *, tty: bool, timestamps: bool, details: bytes = b""
) -> AsyncIterator[bytes]:
    """Log frames as the bytes of `GET /containers/{id}/logs`.

    Args:
        details: stand before each line, after its time.
    """
    line_open = {1: False, 2: False}
    async for frame in frames:
        payload = frame.payload
        if timestamps or details:
            stamp = f"{rfc3339(frame.time_ns, fixed=True)} ".encode() if timestamps else b""
            payload = _prefixed(payload, stamp + details, line_open[frame.stream])
            line_open[frame.stream] = not frame.payload.endswith(b"\n")
        yield payload if tty else multiplexed(frame.stream, payload)


def _prefixed(payload: bytes, prefix: bytes, line_open: bool) -> bytes:
    """`payload` with `prefix` before each line that begins in it."""
    lines = _lines(payload)
    head = b"" if line_open else prefix
    return head + prefix.join(lines) if lines else b""


def _lines(payload: bytes) -> list[bytes]:
    """Split after newlines only (`bytes.splitlines` also splits at carriage returns)."""
    parts = payload.split(b"\n")
    lines = [part + b"\n" for part in parts[:-1]]
    return [*lines, parts[-1]] if parts[-1] else lines
