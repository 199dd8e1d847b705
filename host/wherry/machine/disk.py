"""An empty qcow2 image, written without qemu-img.

Format: QEMU's docs/interop/qcow2.txt, version 3. The layout of an empty image is four clusters:
header, refcount table, refcount block, L1 table (all zero: nothing is allocated).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from wherry.osutil import fsync_directory, sync_descriptor

_MAGIC = 0x514649FB
_VERSION = 3
_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_REFCOUNT_ORDER = 4
"""16-bit reference counts, QEMU's default."""
_HEADER_LENGTH = 104
_HEADER = struct.Struct(">IIQIIQIIQQIIQQQQII")
"""magic, version, backing file offset and size, cluster bits, size, encryption, L1 size, L1 offset,
refcount table offset and clusters, snapshot count and offset, features (incompatible, compatible,
autoclear), refcount order, header length."""
_REFCOUNT_TABLE, _REFCOUNT_BLOCK, _L1_TABLE = 1, 2, 3
"""Cluster numbers; the header is cluster 0."""
_BYTES_PER_L1_ENTRY = _CLUSTER // 8 * _CLUSTER
"""An L2 table is one cluster of 8-byte entries: 512 MiB."""


def empty_qcow2(size: int) -> bytes:
    """The image of an empty disk of `size` bytes (a multiple of 512, at most 4 TiB)."""
    if size <= 0 or size % 512 or size > _BYTES_PER_L1_ENTRY * (_CLUSTER // 8):
        raise ValueError(f"a disk cannot have {size} bytes")
    header = _HEADER.pack(
        _MAGIC,
        _VERSION,
        *(0, 0),
        _CLUSTER_BITS,
        size,
        0,
        -(-size // _BYTES_PER_L1_ENTRY),
        _L1_TABLE * _CLUSTER,
        *(_REFCOUNT_TABLE * _CLUSTER, 1),
        *(0, 0),
        *(0, 0, 0),
        _REFCOUNT_ORDER,
        _HEADER_LENGTH,
    )
    refcount_table = struct.pack(">Q", _REFCOUNT_BLOCK * _CLUSTER)
    refcounts = struct.pack(">4H", 1, 1, 1, 1)
    return b"".join(
        part.ljust(_CLUSTER, b"\0") for part in (header, refcount_table, refcounts, b"")
    )


def create_disk(path: Path, size: int) -> None:
    """Make a new sparse disk image of `size` bytes. It is there whole or not at all.

    Raises:
        OSError: it exists, or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(empty_qcow2(size))
        file.flush()
        sync_descriptor(file.fileno())
    temporary.chmod(0o600)
    if path.exists():
        temporary.unlink()
        raise FileExistsError(f"{os.fspath(path)} exists")
    temporary.replace(path)
    fsync_directory(path.parent)
