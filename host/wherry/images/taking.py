"""Store an image that was found at its source: layers first, then row and names, at once."""

from __future__ import annotations

from wherry.images.layers import Source
from wherry.images.parts import Parts, objects_of
from wherry.images.progress import Reporter
from wherry.images.pull import FoundImage
from wherry.images.store_db import ImageRow

PULL_LEASE_SECONDS = 24 * 3600.0
"""How long the finished blobs of a pull that failed wait for the next try."""


def take(
    parts: Parts,
    found: FoundImage,
    source: Source | None,
    tag: str | None,
    digest: tuple[str, str] | None,
    reporter: Reporter,
    *,
    holder: str | None = None,
) -> bool:
    """Store an image; False when nothing had to be done.

    Args:
        source: of blobs that are missing; None: they must be there.
        tag: the full name that is to point to it. digest: (repository, digest) that it has there.
        holder: of the lease until then. None: pulls of one image share one, so that the one that
            succeeds also ends those of failed and killed ones. Another that is still at work then
            starts over, which is quick.
    """
    if _is_stored(parts, found, tag, digest):
        for layer in found.layers:
            reporter.layer(layer.blob, "Already exists")
        return False
    distinct = {layer.blob: layer for layer in found.layers}.values()
    missing = sum(it.blob_size for it in distinct if not parts.layers.is_present(it))
    parts.check_space(missing, "the image")
    holder = holder or f"pull:{found.manifest_digest}"
    objects = objects_of(found.layers, found.documents)
    stored = False
    while not stored:
        parts.db.lease(holder, objects, PULL_LEASE_SECONDS)
        parts.layers.ensure(found.layers, source, reporter)
        for document in found.documents.values():
            parts.layout.write(document)
        row = row_of(parts, found)
        stored = parts.db.add_image(row, found.layers, objects, tag, digest, holder=holder)
    parts.settle()
    return True


def row_of(parts: Parts, found: FoundImage) -> ImageRow:
    """An image's row; its layers are there."""
    sizes = [parts.layers.find(layer.diff_id) for layer in found.layers]
    platform = found.config.platform
    return ImageRow(
        id=found.id,
        manifest_digest=found.manifest_digest,
        export_digest=found.export_digest,
        export_size=len(found.documents[found.export_digest]),
        os=platform.os,
        architecture=platform.architecture,
        variant=platform.variant,
        created_ns=found.config.created_ns,
        size=sum(known.data_bytes for known in sizes if known),
        raw_config=found.documents[found.id],
    )


def _is_stored(
    parts: Parts, found: FoundImage, tag: str | None, digest: tuple[str, str] | None
) -> bool:
    row = parts.db.image(found.id)
    return (
        row is not None
        and row.manifest_digest == found.manifest_digest
        and (tag is None or parts.db.tag_target(tag) == found.id)
        and (digest is None or parts.db.digest_target(*digest) == found.id)
        and all(parts.layers.is_present(layer) for layer in found.layers)
        and all(parts.layout.has(it, len(data)) for it, data in found.documents.items())
    )
