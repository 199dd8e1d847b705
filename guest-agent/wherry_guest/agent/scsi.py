"""LUNs of the virtio-scsi host: find, scan, identify afresh, delete.

Nothing that the kernel cached about a LUN is believed: after a LUN was unplugged and another file
plugged in at the same address without the guest's knowledge, sysfs and the page cache still show
the old one. So the serial is asked of the device (SG_IO), the superblock read past the page cache
(O_DIRECT).
"""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_os: Final[Any] = os

SG_IO: Final = 0x2285
"""scsi/sg.h."""
_SG_DXFER_FROM_DEV: Final = -3
_INQUIRY: Final = 0x12
"""SPC-4 6.6; byte 1 bit 0 is EVPD, byte 2 the page."""
_VPD_UNIT_SERIAL_NUMBER: Final = 0x80
_INQUIRY_BYTES: Final = 252
_TIMEOUT_MS: Final = 5000

EROFS_MAGIC: Final = 0xE0F5E1E2
"""fs/erofs/erofs_fs.h: EROFS_SUPER_MAGIC_V1, little-endian at the superblock's start."""
_EROFS_SUPER_OFFSET: Final = 1024
_EROFS_UUID_OFFSET: Final = 48
_DIRECT_BYTES: Final = 4096
"""A multiple of any logical block size that QEMU gives, and it holds the superblock."""


class _SgIoHeader(ctypes.Structure):
    """struct sg_io_hdr, scsi/sg.h."""

    _fields_ = (
        ("interface_id", ctypes.c_int),
        ("dxfer_direction", ctypes.c_int),
        ("cmd_len", ctypes.c_ubyte),
        ("mx_sb_len", ctypes.c_ubyte),
        ("iovec_count", ctypes.c_ushort),
        ("dxfer_len", ctypes.c_uint),
        ("dxferp", ctypes.c_void_p),
        ("cmdp", ctypes.c_void_p),
        ("sbp", ctypes.c_void_p),
        ("timeout", ctypes.c_uint),
        ("flags", ctypes.c_uint),
        ("pack_id", ctypes.c_int),
        ("usr_ptr", ctypes.c_void_p),
        ("status", ctypes.c_ubyte),
        ("masked_status", ctypes.c_ubyte),
        ("msg_status", ctypes.c_ubyte),
        ("sb_len_wr", ctypes.c_ubyte),
        ("host_status", ctypes.c_ushort),
        ("driver_status", ctypes.c_ushort),
        ("resid", ctypes.c_int),
        ("duration", ctypes.c_uint),
        ("info", ctypes.c_uint),
    )


@dataclass(frozen=True, slots=True)
class ScsiHost:
    """The machine's one virtio-scsi host; its one target is 0 on channel 0.

    Raises (all methods): OSError, with what was asked in its file name.
    """

    number: int
    sysfs: Path

    @classmethod
    def find(cls, sysfs: Path = Path("/sys")) -> ScsiHost | None:
        """The host whose driver is virtio_scsi; None when the machine has none."""
        for host in sorted((sysfs / "class/scsi_host").glob("host*")):
            if (host / "proc_name").read_text().strip() == "virtio_scsi":
                return cls(int(host.name.removeprefix("host")), sysfs)
        return None

    def disk(self, lun: int) -> str | None:
        """The block device's name (`sdb`) once the kernel knows the LUN and its disk, else None."""
        try:
            names = [path.name for path in (self._device(lun) / "block").iterdir()]
        except FileNotFoundError:
            return None
        return names[0] if names else None

    def scan(self, lun: int) -> None:
        """Ask the kernel to look at this one address; harmless when it knows the LUN already."""
        control = self.sysfs / f"class/scsi_host/host{self.number}/scan"
        control.write_text(f"0 0 {lun}")

    def delete(self, lun: int) -> bool:
        """Make the kernel forget the LUN. Returns whether it is gone now (or was never there)."""
        device = self._device(lun)
        try:
            (device / "delete").write_text("1")
        except FileNotFoundError:
            return True
        return not device.exists()

    # What a disk says of itself.

    @staticmethod
    def is_ready(device: Path) -> bool:
        """Whether the device can be opened: its node is there a moment before its disk."""
        try:
            os.close(os.open(device, os.O_RDONLY | _os.O_CLOEXEC | _os.O_NONBLOCK))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENXIO):
                return False
            raise
        return True

    @staticmethod
    def read_serial(device: Path) -> str:
        """The unit serial number (VPD page 0x80), asked of the device now."""
        fd = os.open(device, os.O_RDONLY | _os.O_CLOEXEC | _os.O_NONBLOCK)
        try:
            page = _inquiry(fd, _VPD_UNIT_SERIAL_NUMBER, device)
        finally:
            os.close(fd)
        return page[4 : 4 + page[3]].decode("ascii", "replace").strip()

    @staticmethod
    def read_erofs_uuid(device: Path) -> str | None:
        """The UUID (32 hex digits) of its EROFS, read past the page cache; None: no EROFS."""
        import mmap  # here: only for its page-aligned memory, and it is a shared object of its own

        fd = os.open(device, os.O_RDONLY | _os.O_CLOEXEC | _os.O_DIRECT)
        try:
            with mmap.mmap(-1, _DIRECT_BYTES) as block:
                if _os.preadv(fd, [block], 0) != _DIRECT_BYTES:
                    return None
                return erofs_uuid(block[:])
        finally:
            os.close(fd)

    @staticmethod
    def is_claimed(device: Path) -> bool:
        """Whether a file system in any mount namespace still uses the device (exclusively)."""
        try:
            os.close(os.open(device, os.O_RDONLY | _os.O_CLOEXEC | os.O_EXCL))
        except OSError as error:
            if error.errno == errno.EBUSY:
                return True
            raise
        return False

    def _device(self, lun: int) -> Path:
        return self.sysfs / f"bus/scsi/devices/{self.number}:0:0:{lun}"


def erofs_uuid(first_block: bytes) -> str | None:
    """The UUID (32 hex digits) in the first 4 KiB of an image; None when it is no EROFS."""
    superblock = first_block[_EROFS_SUPER_OFFSET:]
    if int.from_bytes(superblock[:4], "little") != EROFS_MAGIC:
        return None
    return superblock[_EROFS_UUID_OFFSET : _EROFS_UUID_OFFSET + 16].hex()


def _inquiry(fd: int, page: int, device: Path) -> bytes:
    from wherry_guest.agent.kernel import ioctl

    answer = ctypes.create_string_buffer(_INQUIRY_BYTES)
    sense = ctypes.create_string_buffer(32)
    command = ctypes.create_string_buffer(bytes((_INQUIRY, 1, page, 0, _INQUIRY_BYTES, 0)), 6)
    header = _SgIoHeader(
        interface_id=ord("S"),
        dxfer_direction=_SG_DXFER_FROM_DEV,
        cmd_len=6,
        mx_sb_len=32,
        dxfer_len=_INQUIRY_BYTES,
        dxferp=ctypes.addressof(answer),
        cmdp=ctypes.addressof(command),
        sbp=ctypes.addressof(sense),
        timeout=_TIMEOUT_MS,
    )
    result = _SgIoHeader.from_buffer_copy(ioctl(fd, SG_IO, bytes(header)))
    if result.status or result.host_status or result.driver_status:
        raise OSError(errno.EIO, "INQUIRY was refused", str(device))
    data = answer.raw
    if data[1] != page:
        raise OSError(errno.EIO, f"INQUIRY answered page {data[1]:#x}", str(device))
    return data
