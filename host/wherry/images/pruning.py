"""Remove what nobody needs: images, blobs that a registry has too, what killed processes left.

What a container, a running pull, build, push or save holds has a lease in the store's database, in
whichever machine or process: it is looked for in the transaction that removes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from wherry.images.image import Image
from wherry.images.names import Removal
from wherry.images.parts import Parts
from wherry.images.usage import droppable

_KEEPS_BLOBS = "SELECT 1 FROM leases WHERE object = ? AND holder NOT LIKE 'container:%'"
"""A container needs its layers' EROFS files only."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What went, and how many bytes of the disk are free now that were not."""

    removals: tuple[Removal, ...]
    bytes: int


def prune_images(
    parts: Parts, images: Sequence[Image], wanted: Callable[[Image], bool], *, tagged: bool
) -> Pruned:
    """Remove images that nobody uses.

    Args:
        images: all of the store.
        wanted: which of them may go.
        tagged: those with tags too.
    """
    parts.ingest.sweep()  # nothing is noted about these: room for what is
    parts.ingest.sweep_digests()
    removals: list[Removal] = []
    for image in images:
        if (image.tags and not tagged) or not wanted(image):
            continue
        forget = partial(parts.db.remove_unused, image.id, with_tags=tagged)
        if parts.noting_removal(image.id, forget):
            removals += [Removal(untagged=name) for name in (*image.tags, *image.digests)]
            removals.append(Removal(deleted=image.id))
    _adopt_orphans(parts)
    settled = parts.settle()
    removals += [Removal(deleted=layer) for layer in settled.layers]
    return Pruned(tuple(removals), settled.bytes)


def prune_blobs(parts: Parts) -> Pruned:
    """Give up blobs whose layers are EROFS files and that can be fetched again. A later `save`,
    `push` or repair fetches them."""
    removals = []
    freed = 0
    for blob in list(droppable(parts)):
        with parts.db.write(frees=True) as connection:
            if connection.execute(_KEEPS_BLOBS, (blob,)).fetchone():
                continue
            size = parts.layout.stored_bytes(blob)
            if not parts.layout.remove(blob):
                continue
            connection.execute("INSERT OR IGNORE INTO dropped VALUES (?)", (blob,))
        freed += size
        removals.append(Removal(deleted=blob))
    return Pruned(tuple(removals), freed)


def _adopt_orphans(parts: Parts) -> None:
    """Files that neither an image nor a lease names, such as of a lost database or of layers in a
    format that is no longer written, become garbage. Who makes a file takes its lease first."""
    with parts.db.write(frees=True) as connection:
        connection.execute("CREATE TEMP TABLE IF NOT EXISTS on_disk (object TEXT PRIMARY KEY)")
        connection.execute("DELETE FROM on_disk")
        connection.executemany(
            "INSERT OR IGNORE INTO on_disk VALUES (?)", [(name,) for name in parts.on_disk()]
        )
        connection.execute(
            "INSERT OR IGNORE INTO garbage SELECT object FROM on_disk WHERE object NOT IN "
            "(SELECT object FROM image_objects) AND object NOT IN (SELECT object FROM leases)"
        )
        connection.execute("DELETE FROM on_disk")
