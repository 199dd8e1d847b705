"""A layer that is new here: its tar stored, hashed and converted while it arrives, in one pass.

The blob is the tar as it came (plain, gzip or zstd): nothing is compressed here. A plain blob's
digest is its diffID, the same on every host, whatever compressor that has; a push compresses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wherry.images.compress import GZIP_MAGIC, ZSTD_MAGIC
from wherry.images.convert import ConvertedLayer, Converter
from wherry.images.ingest import move_into_place
from wherry.images.parts import Parts
from wherry.images.store_db import LayerRow
from wherry.osutil import sync_descriptor

_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class ReceivedLayer:
    """A layer in files that have no names yet.

    Attributes:
        row: diffID, blob's digest and size.
        media_type: of the blob.
    """

    row: LayerRow
    media_type: str
    converted: ConvertedLayer
    blob: Path
    erofs: Path

    def keep(self, parts: Parts) -> None:
        """Give the files their names. The caller has leased the objects."""
        with parts.ingest.working_on(self.row.blob):
            if not parts.layout.has(self.row.blob, self.row.blob_size):
                move_into_place(self.blob, parts.layout.blob_path(self.row.blob))
            parts.layers.keep(self.erofs, self.converted)


def receive_layer(chunks: Iterator[bytes], directory: Path, max_bytes: int) -> ReceivedLayer:
    """Take a layer's tar in; its files are in `directory`, synced.

    Raises:
        LayerError, ContentMismatch: it is damaged, hostile or larger than `max_bytes` unpacked.
    """
    blob, erofs = directory / "blob", directory / "erofs"
    content = hashlib.sha256()
    start = b""
    size = 0
    with blob.open("xb") as out, Converter(erofs, None, max_bytes) as converter:
        for chunk in chunks:
            start = start or chunk[:4]
            size += len(chunk)
            content.update(chunk)
            out.write(chunk)
            converter.write(chunk)
            if converter.gave_up:
                break  # it says why
        layer = converter.finish()
        out.flush()
        sync_descriptor(out.fileno())
    suffix = "+gzip" if start.startswith(GZIP_MAGIC) else "+zstd" if start == ZSTD_MAGIC else ""
    row = LayerRow(layer.diff_id, f"sha256:{content.hexdigest()}", size)
    return ReceivedLayer(row, _LAYER + suffix, layer, blob, erofs)
