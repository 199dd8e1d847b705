"""What the store takes on disk, and what of it is shared: `images`, `system df`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from wherry.images.erofs import FORMAT
from wherry.images.layers import disk_bytes
from wherry.images.parts import Parts


@dataclass(frozen=True, slots=True)
class Files:
    """Files of one kind: how many, and bytes on disk (holes do not count)."""

    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """The whole store.

    Attributes:
        layers_bytes: contents of the files in all layers, each layer once.
        blobs: compressed layers, configs, manifests, as other tools read them.
        erofs: layers as the machines mount them.
        unfinished: downloads and archives in work, and what killed processes left.
        droppable_bytes: what `image prune --blobs` would free.
    """

    layers_bytes: int
    blobs: Files
    erofs: Files
    unfinished: Files
    droppable_bytes: int


def shared_sizes(parts: Parts) -> Mapping[str, int]:
    """Of every image: bytes in layers that other images have, too."""
    found = parts.db.rows(
        "SELECT i.image_id, sum(l.data_bytes) FROM (SELECT DISTINCT image_id, diff_id "
        "FROM image_layers) AS i JOIN layers AS l ON l.diff_id = i.diff_id AND l.format = ? "
        "WHERE EXISTS (SELECT 1 FROM image_layers AS o WHERE o.diff_id = i.diff_id "
        "AND o.image_id != i.image_id) GROUP BY i.image_id",
        FORMAT,
    )
    return {str(image_id): int(str(size)) for image_id, size in found}


def layer_sizes(parts: Parts) -> Mapping[str, int]:
    """Of every layer, by diffID: bytes of the files in it."""
    found = parts.db.rows("SELECT diff_id, data_bytes FROM layers WHERE format = ?", FORMAT)
    return {str(diff_id): int(str(size)) for diff_id, size in found}


def usage(parts: Parts) -> Usage:
    """Counted now: files are looked at, not the database."""
    layers = parts.db.rows(
        "SELECT coalesce(sum(data_bytes), 0) FROM layers WHERE format = ? AND diff_id IN "
        "(SELECT diff_id FROM image_layers)",
        FORMAT,
    )
    return Usage(
        layers_bytes=int(str(layers[0][0])),
        blobs=_count(parts.root / "store" / "blobs"),
        erofs=_count(parts.root / "layers"),
        unfinished=_count(parts.root / "ingest"),
        droppable_bytes=sum(parts.layout.stored_bytes(blob) for blob in droppable(parts)),
    )


def droppable(parts: Parts) -> Iterator[str]:
    """Blobs of layers that are EROFS files already and that some registry is known to have."""
    found = parts.db.rows(
        "SELECT DISTINCT blob, diff_id FROM image_layers WHERE "
        "blob NOT IN (SELECT blob FROM dropped) AND ("
        "image_id IN (SELECT image_id FROM digests WHERE repository NOT LIKE 'localhost/%') "
        "OR blob IN (SELECT blob FROM blob_sources))"
    )
    for blob, diff_id in found:
        if parts.layers.find(str(diff_id)) is not None and parts.layout.stored_bytes(str(blob)):
            yield str(blob)


def _count(directory: Path) -> Files:
    count = size = 0
    for path in directory.rglob("*"):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue  # finished or removed meanwhile
        if path.suffix != ".lock" and path.is_file():
            count += 1
            size += disk_bytes(status)
    return Files(count, size)
