"""What the guest has deleted goes back to the host: FITRIM over the data disk, piece by piece.

QEMU turns the discards into holes of the disk's file. A piece is small, so that the agent answers
in between; ext4 skips what it has trimmed since the disk was mounted.
"""

from __future__ import annotations

import os
import struct
from typing import Any, Final

from wherry_guest.agent.children import run_program, sleep
from wherry_guest.agent.kernel import ioctl
from wherry_guest.channel import CallError
from wherry_guest.loop import Loop

_os: Final[Any] = os

_FITRIM: Final = 0xC0185879
"""uapi/linux/fs.h: _IOWR('X', 121, struct fstrim_range)."""
_RANGE: Final = struct.Struct("=QQQ")
"""struct fstrim_range: start, len, minlen; len comes back as what was trimmed."""

PIECE: Final = 1 << 30
SMALLEST: Final = 64 << 10
"""A cluster of the disk's file: less would give nothing back."""

SYNC_TIMEOUT: Final = 120.0


async def trim(loop: Loop, directory: str, seconds: float) -> dict[str, Any]:
    """Trim the file system at `directory`, for at most about `seconds`.

    What was deleted just now counts once it is in the journal: `sync` before.

    Returns:
        {bytes: what was given back, done: whether all was looked at}.

    Raises:
        OSError: it cannot be trimmed.
    """
    deadline = loop.time() + seconds
    status = _os.statvfs(directory)
    size = status.f_blocks * status.f_frsize
    fd = os.open(directory, os.O_RDONLY | _os.O_DIRECTORY | _os.O_CLOEXEC)
    trimmed = start = 0
    try:
        while start < size and loop.time() < deadline:
            answer = ioctl(fd, _FITRIM, _RANGE.pack(start, PIECE, SMALLEST))
            trimmed += _RANGE.unpack(answer)[1]
            start += PIECE
            await sleep(loop, 0)
    finally:
        os.close(fd)
    return {"bytes": trimmed, "done": start >= size}


async def sync(loop: Loop) -> None:
    """Have all written that the kernel holds; in a process of its own, since it may take long."""
    finished = await run_program(loop, ("busybox", "sync"), SYNC_TIMEOUT)
    if finished.code:
        raise CallError("failed", finished.complaint)
