"""The data disk: found by its serial, given a file system when it is blank, checked when it must
be.

Nothing is ever formatted but a disk whose first 4 KiB are all zero: there lies the superblock,
which mkfs writes last, so that a machine that died in its first mkfs is made anew.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from wherry_guest.agent.children import Finished, run_program, sleep
from wherry_guest.core.syscalls import MS_NOATIME, Kernel
from wherry_guest.loop import Loop

APPEAR_TIMEOUT: Final = 10.0
"""Seconds that a disk which was plugged in just now may take to show up."""

FSCK_TIMEOUT: Final = 3600.0
MKFS_TIMEOUT: Final = 300.0

PROBE_BYTES: Final = 4096

_EUCLEAN: Final = 117
"""uapi/asm-generic/errno.h: ext4's answer to a structure that is wrong."""

# fs/ext4/ext4.h, struct ext4_super_block at byte 1024.
_SUPER: Final = 1024
_MAGIC_AT: Final = _SUPER + 0x38
_STATE_AT: Final = _SUPER + 0x3A
_INCOMPAT_AT: Final = _SUPER + 0x60
_MAGIC: Final = 0xEF53
_VALID_FS: Final = 0x1
_ERROR_FS: Final = 0x2
_INCOMPAT_RECOVER: Final = 0x4

MKFS: Final = (
    "mkfs.ext4", "-q", "-F", "-m", "0", "-L", "wherry-data", "-J", "size=64",
    # A new sparse image reads as zeros: nothing has to be zeroed or discarded, now or later.
    "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1,assume_storage_prezeroed=1",
)  # fmt: skip

MOUNT_OPTIONS: Final = "discard,noinit_itable,errors=remount-ro"


class DiskError(Exception):
    """The data disk is missing or cannot be used; the message is one line for a person."""


async def mount_data_disk(loop: Loop, kernel: Kernel, serial: str, target: Path) -> str:
    """Find, make or check, and mount the data disk.

    Returns:
        `created`, `mounted` or `repaired`.

    Raises:
        DiskError: it did not appear, is no ext4, or cannot be repaired.
        OSError: from reading it.
    """
    device = await _appear(loop, serial)
    with device.open("rb", buffering=0) as disk:
        start = disk.read(PROBE_BYTES)
    if not any(start):
        _must_succeed(await run_program(loop, (*MKFS, str(device)), MKFS_TIMEOUT), 0)
        _mount(kernel, device, target)
        return "created"
    if not is_ext4(start):
        raise DiskError(f"the data disk {device} holds something that is not an ext4 file system")
    if is_clean(start):
        try:
            _mount(kernel, device, target)
        except OSError as error:
            if error.errno not in (_EUCLEAN, errno.EINVAL, errno.EIO):
                raise
        else:
            return "mounted"
    await _repair(loop, device)
    _mount(kernel, device, target)
    return "repaired"


def is_ext4(start: bytes) -> bool:
    return int.from_bytes(start[_MAGIC_AT : _MAGIC_AT + 2], "little") == _MAGIC


def is_clean(start: bytes) -> bool:
    """Whether the superblock says: unmounted in order, no errors seen, no journal to replay."""
    state = int.from_bytes(start[_STATE_AT : _STATE_AT + 2], "little")
    incompatible = int.from_bytes(start[_INCOMPAT_AT : _INCOMPAT_AT + 4], "little")
    return state & (_VALID_FS | _ERROR_FS) == _VALID_FS and not incompatible & _INCOMPAT_RECOVER


def find_disk(serial: str, sysfs: Path = Path("/sys")) -> str | None:
    """The name (`vda`) of the virtio disk with this serial; virtio-blk shows its first 20 bytes."""
    # By strings: this is polled while a machine starts.
    block = f"{sysfs}/block"
    for name in sorted(os.listdir(block)):  # noqa: PTH208 - as said
        if not name.startswith("vd"):
            continue
        try:
            found = _read(f"{block}/{name}/serial")
        except OSError:
            continue  # just unplugged, or not answering yet: the caller looks again
        if found and found == serial[:20]:
            return name
    return None


def _read(file: str) -> str:
    fd = os.open(file, os.O_RDONLY)
    try:
        return os.read(fd, 64).decode("ascii", "replace").strip()
    finally:
        os.close(fd)


async def _appear(loop: Loop, serial: str) -> Path:
    deadline = loop.time() + APPEAR_TIMEOUT
    pause = 0.002
    while (name := find_disk(serial)) is None or not (device := Path("/dev", name)).exists():
        if loop.time() > deadline:
            raise DiskError(f"no disk with the serial {serial!r} after {APPEAR_TIMEOUT:.0f} s")
        await sleep(loop, pause)
        pause = min(2 * pause, 0.016)
    return device


async def _repair(loop: Loop, device: Path) -> None:
    finished = await run_program(loop, ("e2fsck", "-p", str(device)), FSCK_TIMEOUT)
    if finished.code < 0 or finished.code & ~3:
        # Not one for automatic mode; nobody else will look at it, so take the answers that keep the
        # most.
        finished = await run_program(loop, ("e2fsck", "-fy", str(device)), FSCK_TIMEOUT)
    _must_succeed(finished, 3)


def _must_succeed(finished: Finished, allowed_bits: int) -> None:
    if finished.code < 0 or finished.code & ~allowed_bits:
        raise DiskError(finished.complaint)


def _mount(kernel: Kernel, device: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    kernel.mount(os.fspath(device), os.fspath(target), "ext4", MS_NOATIME, MOUNT_OPTIONS)
