"""Is a qcow2 image sound? Its header and tables read without qemu-img, nothing is written.

Format: QEMU's docs/interop/qcow2.txt, versions 2 and 3. An image that a QEMU has open changes under
the reader's hands, and its tables lag behind: then only the header counts (`tables=False`).
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_MAGIC = 0x514649FB
_HEADER = struct.Struct(">IIQIIQIIQQIIQ")
"""magic, version, backing file offset and size, cluster bits, size, encryption, L1 size, L1 offset,
refcount table offset and clusters, snapshot count and offset."""
_VERSION_3 = struct.Struct(">QQQII")
"""At 72: features (incompatible, compatible, autoclear), refcount order, header length."""
_DIRTY, _CORRUPT = 1, 2
_KNOWN_FEATURES = 0x1F
"""Dirty, corrupt, external data file, compression type, extended L2 entries."""
_OFFSET = 0x00FFFFFFFFFFFE00
"""Bits 9 to 55 of an L1 or L2 entry, and of a refcount table's."""
_COMPRESSED = 1 << 62
_MOST_TABLE_BYTES = 64 << 20
"""QEMU's own limit of an L1 table is 32 MiB (block/qcow2.h, QCOW_MAX_L1_SIZE)."""


@dataclass(frozen=True, slots=True)
class DiskReport:
    """What was found.

    Attributes:
        size: of the disk, as the guest sees it, in bytes.
        damages: what makes the image unusable or unsafe, in words.
        leaked: bytes that are allocated and used by nothing: harmless, but lost.
        dirty: it was not closed properly; QEMU mends that when it opens it.
    """

    size: int = 0
    damages: tuple[str, ...] = ()
    leaked: int = 0
    dirty: bool = False


@dataclass(frozen=True, slots=True)
class _Image:
    file: BinaryIO
    length: int
    cluster: int
    size: int
    l1_size: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    features: int
    refcount_bits: int


def check_disk(path: Path, *, tables: bool = True) -> DiskReport:
    """Look at the image at `path`.

    Args:
        tables: also follow every reference and compare with the reference counts.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        length = file.seek(0, 2)
        image = _read_header(file, length)
        if isinstance(image, str):
            return DiskReport(damages=(image,))
        damages = list(_header_damages(image))
        dirty = bool(image.features & _DIRTY)
        if damages or not tables:
            return DiskReport(image.size, tuple(damages), 0, dirty)
        found, leaked = _compare(image)
        return DiskReport(image.size, tuple(found), leaked, dirty)


def _read_header(file: BinaryIO, length: int) -> _Image | str:
    file.seek(0)
    data = file.read(_HEADER.size + _VERSION_3.size)
    if len(data) < _HEADER.size:
        return f"it has only {length} bytes"
    magic, version, _, _, bits, size, _, l1_size, l1, refs, ref_clusters, snapshots, _ = (
        _HEADER.unpack_from(data)
    )
    if magic != _MAGIC:
        return "it is not a qcow2 image (its first bytes are overwritten)"
    if version not in (2, 3):
        return f"its format has version {version}, which is unknown"
    if not 9 <= bits <= 21:  # docs/interop/qcow2.txt: cluster_bits; QEMU takes at most 2 MiB
        return f"its header is damaged (clusters of 2^{bits} bytes)"
    features, order = 0, 4
    if version == 3:
        if len(data) < _HEADER.size + _VERSION_3.size:
            return f"it has only {length} bytes"
        features, _, _, order, _ = _VERSION_3.unpack_from(data, _HEADER.size)
    if order > 6:
        return f"its header is damaged (reference counts of 2^{order} bits)"
    return _Image(
        file=file,
        length=length,
        cluster=1 << bits,
        size=size,
        l1_size=l1_size,
        l1_offset=l1,
        refcount_offset=refs,
        refcount_clusters=ref_clusters,
        snapshots=snapshots,
        features=features,
        refcount_bits=1 << order,
    )


def _header_damages(image: _Image) -> Iterator[str]:
    if image.features & _CORRUPT:
        yield "QEMU has marked it as corrupt"
    if image.features & ~_KNOWN_FEATURES:
        yield f"it has features that are unknown ({image.features & ~_KNOWN_FEATURES:#x})"
    for name, offset, size in (
        ("L1 table", image.l1_offset, image.l1_size * 8),
        ("table of reference counts", image.refcount_offset, _refcount_bytes(image)),
    ):
        if size > _MOST_TABLE_BYTES:
            yield f"its {name} cannot have {size} bytes"
        elif offset == 0 or offset % image.cluster:
            yield f"its {name} is at {offset}, which is no place for it"
        elif offset + size > image.length:
            yield f"it is cut off: its {name} lies behind the end of the file"
    reach = image.l1_size * (image.cluster // 8) * image.cluster
    if image.size > reach:
        yield f"its L1 table is too small for {image.size} bytes"


def _refcount_bytes(image: _Image) -> int:
    return image.refcount_clusters * image.cluster


def _compare(image: _Image) -> tuple[list[str], int]:
    """Damages, and bytes that nothing uses: references against reference counts."""
    damages: list[str] = []
    used = _used_clusters(image, damages)
    counts = _refcounts(image, damages)
    if damages:
        return damages, 0
    missing = [at for at, times in used.items() if counts.get(at, 0) < times]
    if missing:
        first = min(missing) * image.cluster
        damages.append(
            f"{len(missing)} clusters are used without being counted (the first at {first}): "
            "what is written next may overwrite them"
        )
    if image.snapshots:
        return damages, 0  # what snapshots use was not followed
    leaked = sum(1 for at in counts if at not in used)
    return damages, leaked * image.cluster


def _used_clusters(image: _Image, damages: list[str]) -> Counter[int]:
    """Cluster number to how often the active tables name it."""
    used: Counter[int] = Counter()
    _use(used, image, 0, image.cluster)
    _use(used, image, image.l1_offset, image.l1_size * 8)
    _use(used, image, image.refcount_offset, _refcount_bytes(image))
    for entry in _entries(image, image.refcount_offset, _refcount_bytes(image) // 8):
        if entry & _OFFSET:
            _use(used, image, entry & _OFFSET, image.cluster)
    per_table = image.cluster // 8
    for entry in _entries(image, image.l1_offset, image.l1_size):
        table = entry & _OFFSET
        if not table or not _whole(image, table, damages, "an L2 table"):
            continue
        _use(used, image, table, image.cluster)
        for data in _entries(image, table, per_table):
            if data & _COMPRESSED:
                continue  # several may share a cluster; Wherry's disks have none
            if offset := data & _OFFSET:  # behind the end of the file it reads as zeros
                used[offset // image.cluster] += 1
    return used


def _refcounts(image: _Image, damages: list[str]) -> dict[int, int]:
    """Cluster number to its reference count, of those that have one."""
    counts: dict[int, int] = {}
    per_block = image.cluster * 8 // image.refcount_bits
    for index, entry in enumerate(
        _entries(image, image.refcount_offset, _refcount_bytes(image) // 8)
    ):
        block = entry & _OFFSET
        if not block or not _whole(image, block, damages, "a block of reference counts"):
            continue
        image.file.seek(block)
        data = image.file.read(image.cluster)
        if not any(data):
            continue
        for number, count in enumerate(_counts_of(data, image.refcount_bits)):
            if count:
                counts[index * per_block + number] = count
    return counts


def _counts_of(data: bytes, bits: int) -> Iterator[int]:
    if bits >= 8:
        step = bits // 8
        for at in range(0, len(data), step):
            yield int.from_bytes(data[at : at + step], "big")
        return
    mask = (1 << bits) - 1
    for byte in data:  # the first count is in the least significant bits
        for shift in range(0, 8, bits):
            yield byte >> shift & mask


def _whole(image: _Image, offset: int, damages: list[str], what: str) -> bool:
    if offset % image.cluster:
        _once(damages, f"{what} is at {offset}, which is no cluster's beginning")
        return False
    if offset >= image.length:
        _once(damages, f"it is cut off: {what} lies behind the end of the file")
        return False
    return True


def _once(damages: list[str], text: str) -> None:
    if text not in damages and len(damages) < 8:
        damages.append(text)


def _use(used: Counter[int], image: _Image, offset: int, size: int) -> None:
    first = offset // image.cluster
    for cluster in range(first, first + max(1, -(-size // image.cluster))):
        used[cluster] += 1


def _entries(image: _Image, offset: int, count: int) -> array[int]:
    """Big-endian 64-bit numbers; what lies behind the end of the file is missing."""
    image.file.seek(offset)
    data = image.file.read(count * 8)
    numbers = array("Q", data[: len(data) // 8 * 8])
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers
