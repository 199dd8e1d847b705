"""EROFS on disk: constants, structures and the functions that pack them. Pure.

Source of every number: https://erofs.docs.kernel.org ("Core on-disk format"), Linux's
Documentation/filesystems/erofs.rst and the structures in its fs/erofs/erofs_fs.h (names in
comments are theirs). Everything is little-endian.

We write the part of the format that every kernel since 5.15 reads: one device, 4 KiB blocks,
extended inodes, uncompressed data in three layouts (plain, tail inline, chunks with holes).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

BLOCK_BITS = 12
BLOCK_SIZE = 1 << BLOCK_BITS

SUPER_OFFSET = 1024  # EROFS_SUPER_OFFSET
SUPER_SIZE = 128
SUPER_MAGIC = 0xE0F5E1E2  # EROFS_SUPER_MAGIC_V1, uapi/linux/magic.h
UUID_OFFSET = SUPER_OFFSET + 48

FEATURE_COMPAT_SB_CHKSUM = 0x1
FEATURE_COMPAT_MTIME = 0x2  # inodes hold mtime, not ctime
FEATURE_INCOMPAT_CHUNKED_FILE = 0x4

# magic, checksum, feature_compat, blkszbits, sb_extslots, root_nid, inos, build_time,
# build_time_nsec, blocks, meta_blkaddr, xattr_blkaddr, uuid, volume_name, feature_incompat,
# u1, extra_devices, devt_slotoff, dirblkbits, xattr_prefix_count, xattr_prefix_start,
# packed_nid, xattr_filter_reserved, reserved2
SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")

SLOT = 32  # an inode's offset is meta_blkaddr * BLOCK_SIZE + nid * SLOT
INODE_SIZE = 64  # struct erofs_inode_extended
NLINK_AT = 44  # offset of i_nlink in it
NLINK = struct.Struct("<I")
# i_format, i_xattr_icount, i_mode, i_reserved, i_size, i_u, i_ino, i_uid, i_gid, i_mtime,
# i_mtime_nsec, i_nlink, i_reserved2
INODE = struct.Struct("<HHHHQIIIIqII16x")

# i_format: bit 0 says "extended", the data layout stands above it.
FORMAT_PLAIN = 1 | 0 << 1  # EROFS_INODE_FLAT_PLAIN: whole blocks at i_u.raw_blkaddr
FORMAT_INLINE = 1 | 2 << 1  # EROFS_INODE_FLAT_INLINE: the last block's bytes follow the inode
FORMAT_CHUNKS = 1 | 4 << 1  # EROFS_INODE_CHUNK_BASED: an array of block addresses follows it
NULL_ADDRESS = 0xFFFFFFFF  # EROFS_NULL_ADDR: a chunk that is a hole; also "no data blocks"
CHUNK_BITS_MAX = 0x1F  # EROFS_CHUNK_FORMAT_BLKBITS_MASK

# enum of file types in directory entries; the same as the kernel's FT_*
FT_REGULAR, FT_DIRECTORY, FT_CHARACTER, FT_BLOCK, FT_FIFO = 1, 2, 3, 4, 5
FT_SYMLINK = 7

NAME_MAX = 255  # EROFS_NAME_LEN
_DIRENT_SIZE = 12  # nid, nameoff, file_type, reserved

# Name prefixes that an index replaces (EROFS_XATTR_INDEX_*). The kernel knows no others.
XATTR_PREFIXES = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)
XATTR_BODY = struct.Struct("<IB7x")  # h_name_filter, h_shared_count
XATTR_ENTRY = struct.Struct("<BBH")  # e_name_len, e_name_index, e_value_size
XATTR_VALUE_MAX = 0xFFFF
_XATTR_BODY_MAX = XATTR_BODY.size + 4 * (0xFFFF - 1)  # i_xattr_icount has 16 bits


def super_block_area(
    *, uuid: bytes, root_nid: int, inodes: int, blocks: int, chunked: bool, rest: bytes
) -> bytes:
    """The first block from SUPER_OFFSET on: super block, then `rest` (the root's inode), zeros.

    The checksum (crc32c without final inversion) covers all of it.
    """
    fields = [
        SUPER_MAGIC,
        0,
        FEATURE_COMPAT_SB_CHKSUM | FEATURE_COMPAT_MTIME,
        BLOCK_BITS,
        0,
        root_nid,
        inodes,
        0,
        0,
        blocks,
        0,
        0,
        uuid,
        b"",
        FEATURE_INCOMPAT_CHUNKED_FILE if chunked else 0,
        *(0,) * 8,
    ]
    size = BLOCK_SIZE - SUPER_OFFSET
    area = (SUPER.pack(*fields) + rest).ljust(size, b"\0")
    fields[1] = crc32c(area)
    return (SUPER.pack(*fields) + rest).ljust(size, b"\0")


def xattr_body(xattrs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The inline xattrs that follow an inode, sorted; b"" when there are none.

    Raises:
        ValueError: a name, a value or the whole is longer than the format can say.
    """
    parts = [b""]
    for name, value in sorted(xattrs):
        index, suffix = xattr_index(name) or (0, name)
        if not index:
            raise ValueError(f"the namespace of {name!r} cannot be represented")
        if len(suffix) > NAME_MAX or len(value) > XATTR_VALUE_MAX:
            raise ValueError(f"the extended attribute {name[:60]!r} is too long")
        entry = XATTR_ENTRY.pack(len(suffix), index, len(value)) + suffix + value
        parts.append(entry + bytes(-len(entry) % 4))
    if len(parts) == 1:
        return b""
    parts[0] = XATTR_BODY.pack(0, 0)
    body = b"".join(parts)
    if len(body) > _XATTR_BODY_MAX:
        raise ValueError("its extended attributes are too long together")
    return body


def xattr_index(name: bytes) -> tuple[int, bytes] | None:
    """The index and the rest of an xattr's name; None when its namespace has no index."""
    for prefix, index in XATTR_PREFIXES:
        if name.startswith(prefix):
            suffix = name[len(prefix) :]
            # The ACLs' names are whole, the others are prefixes of something.
            if bool(suffix) == prefix.endswith(b"."):
                return index, suffix
    return None


def xattr_count(body: bytes) -> int:
    """i_xattr_icount of an inode with that xattr body."""
    return (len(body) - XATTR_BODY.size) // 4 + 1 if body else 0


def xattr_body_size(count: int) -> int:
    """Bytes of the xattr body that an i_xattr_icount stands for."""
    return XATTR_BODY.size + 4 * (count - 1) if count else 0


def device_number(major: int, minor: int) -> int:
    """i_u.rdev: Linux's new_encode_dev (include/linux/kdev_t.h).

    Raises:
        ValueError: the major needs more than 12 bits, or the minor more than 20.
    """
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise ValueError(f"device number {major}:{minor} is out of range")
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def split_directory(names: Sequence[bytes]) -> tuple[list[int], int]:
    """How sorted `names` ("." and ".." among them) fall into directory blocks.

    Returns:
        The index of each block's first name, and the bytes that the last block uses.
    """
    starts = [0]
    used = 0
    for index, name in enumerate(names):
        need = _DIRENT_SIZE + len(name)
        if used + need > BLOCK_SIZE:
            starts.append(index)
            used = 0
        used += need
    return starts, used


def directory_block(names: Sequence[bytes], entries: Sequence[int]) -> bytes:
    """One directory block, not padded: the dirents of all `names`, then the names.

    `entries` holds nid << 3 | file type for each name.
    """
    values: list[int] = []
    offset = _DIRENT_SIZE * len(names)
    for name, entry in zip(names, entries, strict=True):
        values += (entry >> 3, offset, entry & 7)
        offset += len(name)
    return _dirents(len(names)).pack(*values) + b"".join(names)


@lru_cache(maxsize=512)
def _dirents(count: int) -> struct.Struct:
    return struct.Struct("<" + "QHBx" * count)


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli, reflected 0x82F63B78) from all ones, not inverted at the end."""
    table = _crc_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


@lru_cache(maxsize=1)
def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ 0x82F63B78 if value & 1 else value >> 1
        table.append(value)
    return tuple(table)
