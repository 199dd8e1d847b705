"""A qcow2 image made, measured and enlarged without qemu-img.

Format: QEMU's docs/interop/qcow2.txt, version 3. The layout of an empty image is four clusters:
header, refcount table, refcount block, L1 table (all zero: nothing is allocated).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import StorageError
from wherry.osutil import fsync_directory, sync_descriptor
from wherry.osutil.sparse import mark_sparse

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
_SIZE_AT = 24
_REFCOUNT_TABLE, _REFCOUNT_BLOCK, _L1_TABLE = 1, 2, 3
"""Cluster numbers; the header is cluster 0."""
_BYTES_PER_L1_ENTRY = _CLUSTER // 8 * _CLUSTER
"""An L2 table is one cluster of 8-byte entries: 512 MiB."""


@dataclass(frozen=True, slots=True)
class _Header:
    cluster_bits: int
    size: int
    encryption: int
    l1_entries: int
    l1_table: int


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


def disk_size(path: Path) -> int:
    """Bytes of the disk that the image at `path` holds.

    Raises:
        StorageError: it cannot be read, or is no qcow2.
    """
    try:
        with path.open("rb") as file:
            return _read_header(file.read(_HEADER_LENGTH), path).size
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def enlarge_disk(path: Path, size: int) -> bool:
    """Give a disk that nobody uses `size` bytes; True when it had fewer. It never gets smaller.

    Only the header changes, and the L1 table's unused rest, which is zeroed before: a crash leaves
    the old size or the new one.

    Raises:
        StorageError: it cannot be read or written, or is no qcow2 that can be enlarged.
    """
    try:
        with path.open("rb+", buffering=0) as file:
            header = _read_header(file.read(_HEADER_LENGTH), path)
            if header.size >= size:
                return False
            cluster = 1 << header.cluster_bits
            entries = -(-size // (cluster // 8 * cluster))
            if size % 512 or entries * 8 > _round_up(header.l1_entries * 8, cluster):
                raise StorageError(f"the disk {path} cannot be given {size} bytes")
            file.seek(header.l1_table + header.l1_entries * 8)
            file.write(b"\0" * ((entries - header.l1_entries) * 8))
            sync_descriptor(file.fileno())
            file.seek(_SIZE_AT)
            file.write(struct.pack(">QII", size, header.encryption, entries))
            sync_descriptor(file.fileno())
    except OSError as error:
        raise StorageError(f"cannot enlarge {path}: {error.strerror}") from error
    return True


def ensure_disk(path: Path, size: int) -> None:
    """A disk of at least `size` bytes at `path`: made, enlarged, or left as it is.

    Raises:
        StorageError, OSError: as `enlarge_disk` and `create_disk`.
    """
    if path.exists():
        enlarge_disk(path, size)
    else:
        create_disk(path, size)


def create_disk(path: Path, size: int) -> None:
    """Make a new sparse disk image of `size` bytes. It is there whole or not at all.

    Raises:
        OSError: it exists, or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        mark_sparse(file.fileno())
        file.write(empty_qcow2(size))
        file.flush()
        sync_descriptor(file.fileno())
    temporary.chmod(0o600)
    if path.exists():
        temporary.unlink()
        raise FileExistsError(f"{os.fspath(path)} exists")
    temporary.replace(path)
    fsync_directory(path.parent)


def _read_header(data: bytes, path: Path) -> _Header:
    if len(data) < _HEADER_LENGTH or not data.startswith(struct.pack(">I", _MAGIC)):
        raise StorageError(f"{path} is not a qcow2 disk")
    _, _, _, _, bits, size, encryption, l1_entries, l1_table, *_ = _HEADER.unpack(data)
    return _Header(bits, size, encryption, l1_entries, l1_table)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
