"""The data disk's file system, made as large as the disk is, while it is mounted.

The kernel does the work (EXT4_IOC_RESIZE_FS, through resize2fs); what a power cut interrupts is
ended by the journal, and the next call makes the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from wherry_guest.agent.calls import Answer, Params
from wherry_guest.agent.children import run_program, sleep
from wherry_guest.agent.disk import find_disk
from wherry_guest.channel import CallError
from wherry_guest.loop import Loop

RESIZE_TIMEOUT: Final = 600.0
NOTICE_TIMEOUT: Final = 10.0
"""Seconds until the kernel has heard of a disk's new size."""

_SECTOR: Final = 512
"""Of /sys/block/*/size, whatever the disk's own sectors are."""

# fs/ext4/ext4.h, struct ext4_super_block at byte 1024.
_SUPER: Final = 1024
_BLOCKS_LOW_AT: Final = 0x04
_LOG_BLOCK_SIZE_AT: Final = 0x18
_INCOMPAT_AT: Final = 0x60
_BLOCKS_HIGH_AT: Final = 0x150
_INCOMPAT_64BIT: Final = 0x80


async def grow(loop: Loop, params: Params, sysfs: Path = Path("/sys")) -> Answer:
    """`disk.grow`: make the file system as large as its disk.

    Raises:
        CallError: `not_found` without such a disk; `failed` when it cannot be made larger.
    """
    name = find_disk(params.text("disk_serial"), sysfs)
    if name is None:
        raise CallError("not_found", "there is no data disk")
    device = Path("/dev", name)
    expected = params.number("bytes")
    deadline = loop.time() + NOTICE_TIMEOUT
    while (size := _disk_size(name, sysfs)) < expected:
        if loop.time() > deadline:
            raise CallError("failed", f"the data disk has {size} bytes instead of {expected}")
        await sleep(loop, 0.005)
    blocks, block = file_system_size(_superblock(device))
    # A last group that is too small to hold anything stays unused: that is no reason to try again.
    if size // block <= blocks:
        return {"bytes": blocks * block, "grown": False}
    finished = await run_program(loop, ("resize2fs", str(device)), RESIZE_TIMEOUT)
    if finished.code:
        raise CallError("failed", f"make the data disk's file system larger: {finished.complaint}")
    after, block = file_system_size(_superblock(device))
    return {"bytes": after * block, "grown": after > blocks}


def file_system_size(superblock: bytes) -> tuple[int, int]:
    """(blocks, bytes of a block) that an ext4 superblock tells."""

    def field(at: int) -> int:
        return int.from_bytes(superblock[at : at + 4], "little")

    high = field(_BLOCKS_HIGH_AT) if field(_INCOMPAT_AT) & _INCOMPAT_64BIT else 0
    return field(_BLOCKS_LOW_AT) | high << 32, 1024 << field(_LOG_BLOCK_SIZE_AT)


def _disk_size(name: str, sysfs: Path) -> int:
    return int((sysfs / "block" / name / "size").read_text()) * _SECTOR


def _superblock(device: Path) -> bytes:
    with device.open("rb", buffering=0) as disk:
        disk.seek(_SUPER)
        return disk.read(1024)
