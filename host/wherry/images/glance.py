"""A quick look at what is stored: sizes of what is big, digests of what is small.

`verifying` reads everything; this takes milliseconds and finds what is missing or cut off.
"""

from __future__ import annotations

from collections.abc import Iterator

from wherry.errors import StorageError
from wherry.images.layers import EROFS_OBJECT
from wherry.images.parts import Parts
from wherry.images.store_db import ImageRow, LayerRow


def glance(parts: Parts) -> list[str]:
    """What is wrong, in words; each thing once."""
    found: dict[str, None] = {}
    for row in parts.db.images():
        layers = parts.db.layers_of(row.id)
        for layer in layers:
            found.update(dict.fromkeys(_layer(parts, layer)))
        found.update(dict.fromkeys(_documents(parts, row, {layer.blob for layer in layers})))
    return list(found)


def _layer(parts: Parts, layer: LayerRow) -> Iterator[str]:
    size = parts.layout.stored_bytes(layer.blob)
    if size != layer.blob_size and (size or not parts.db.is_dropped(layer.blob)):
        state = f"has {size} bytes, not {layer.blob_size}" if size else "is missing"
        yield f"blob {layer.blob} {state}"
    if parts.layers.path(layer.diff_id).exists() and parts.layers.find(layer.diff_id) is None:
        yield f"the file of layer {layer.diff_id} is not as long as it was"


def _documents(parts: Parts, row: ImageRow, blobs: set[str]) -> Iterator[str]:
    for name in parts.db.objects_of(row.id):
        if name.startswith(EROFS_OBJECT) or name in blobs:
            continue
        try:
            parts.layout.read(name)
        except StorageError as error:
            yield error.message
