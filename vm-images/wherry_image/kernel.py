"""The uncompressed kernel inside an x86 bzImage.

Sans-I/O. Under software emulation most of the time before a kernel's first line is its own
decompression; QEMU can boot the ELF file directly (PVH, through the Xen note PHYS32_ENTRY). What
is lost is the random placement of the kernel (KASLR), which the decompressor does. Source: the
kernel's Documentation/arch/x86/boot.rst, "The real-mode kernel header".
"""

from __future__ import annotations

import io
import lzma
import struct
import zlib

from .deb import open_zstd
from .elf import is_elf
from .errors import FormatError

_SETUP_SECTS = 0x1F1
_MAGIC_AT, _MAGIC = 0x202, b"HdrS"
_PAYLOAD_AT = 0x248
_SECTOR = 512
_LZ4 = b"\x02\x21\x4c\x18"
"""The frame of `lz4 -l`, which kernels up to Debian's 6.1 use. There is no decoder in the standard
library, and a guest undoes it in a fraction of the time that the other methods take."""
_GZIP, _XZ, _ZSTD = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"


def uncompressed(kernel: bytes) -> bytes | None:
    """The ELF file in a bzImage; None when `kernel` is something else, such as arm64's plain Image,
    or compressed with LZ4.

    Raises:
        FormatError: a bzImage that is damaged or compressed with something that we do not know.
    """
    if kernel[_MAGIC_AT : _MAGIC_AT + 4] != _MAGIC:
        return None
    sectors = kernel[_SETUP_SECTS] or 4
    offset, length = struct.unpack_from("<II", kernel, _PAYLOAD_AT)
    start = (sectors + 1) * _SECTOR + offset
    payload = kernel[start : start + length]
    if payload.startswith(_LZ4):
        return None
    try:
        plain = _decompress(payload)
    except (lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise FormatError(f"damaged kernel: {error}") from error
    if not is_elf(plain):
        raise FormatError("damaged kernel: its payload is not an ELF file")
    return plain


def _decompress(payload: bytes) -> bytes:
    """One stream; the kernel's build appends the uncompressed size to it, which is ignored."""
    if payload.startswith(_XZ):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(_GZIP):
        return zlib.decompressobj(wbits=31).decompress(payload)
    if payload.startswith(_ZSTD):
        return open_zstd(io.BytesIO(payload[:-4])).read()
    raise FormatError(f"unknown compression of the kernel: {payload[:6].hex()}")
