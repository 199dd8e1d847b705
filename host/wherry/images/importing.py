"""An image of one layer, of a root file system's tar: stored, hashed, converted in one pass.

The blob is the tar as it came (plain, gzip or zstd), so nothing is compressed here.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from wherry.errors import ContentMismatch, InvalidInput
from wherry.images.changes import apply_changes
from wherry.images.compress import GZIP_MAGIC, ZSTD_MAGIC
from wherry.images.convert import ConvertedLayer, Converter
from wherry.images.ingest import move_into_place
from wherry.images.media import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Manifest,
    digest_of,
    parse_config,
    parse_manifest,
)
from wherry.images.parts import Parts, objects_of
from wherry.images.platform import Platform, default_platform
from wherry.images.progress import Reporter
from wherry.images.pull import FoundImage
from wherry.images.store_db import LayerRow
from wherry.images.taking import take
from wherry.images.tar import LayerError
from wherry.osutil import sync_descriptor

LEASE_SECONDS = 24 * 3600.0
_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class NewImage:
    """What an image made here says of itself.

    Attributes:
        changes: instructions of `--change`, on top of an empty config.
        message: the history's comment.
        platform: None: this machine's.
        created_ns: nanoseconds since the epoch.
    """

    changes: Sequence[str] = ()
    message: str = ""
    platform: Platform | None = None
    created_ns: int = 0


def import_rootfs(
    parts: Parts, chunks: Iterator[bytes], new: NewImage, tag: str | None, reporter: Reporter
) -> str:
    """Make an image of a tar; its id.

    Args:
        chunks: the tar of a root file system, plain or compressed with gzip or zstd.
        tag: the full name that it gets.

    Raises:
        InvalidInput: a change is malformed; the tar is damaged or hostile: nothing is stored.
    """
    config = apply_changes({}, new.changes)
    with parts.ingest.spool() as directory:
        blob, erofs = directory / "blob", directory / "erofs"
        size, digest, suffix, layer = _receive(chunks, blob, erofs, parts.limits.layer_bytes)
        row = LayerRow(layer.diff_id, digest, size)
        found = _image(row, suffix, config, new)
        holder = f"import:{directory.name}"
        try:
            parts.db.lease(holder, objects_of([row], found.documents), LEASE_SECONDS)
            with parts.ingest.working_on(digest):
                if not parts.layout.has(digest, size):
                    move_into_place(blob, parts.layout.blob_path(digest))
                parts.layers.keep(erofs, layer)
            take(parts, found, None, tag, None, reporter, holder=f"{holder}:1")
        finally:
            parts.db.release(holder)
            parts.settle()
    return found.id


def _receive(
    chunks: Iterator[bytes], blob: Path, erofs: Path, max_bytes: int
) -> tuple[int, str, str, ConvertedLayer]:
    """Write blob and EROFS file, synced: size, digest, suffix of the media type, the layer."""
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
        try:
            layer = converter.finish()
        except (LayerError, ContentMismatch) as error:
            raise InvalidInput(
                f"cannot import: {error.message}",
                hint=error.hint or "import takes the tar of a root file system",
            ) from error
        out.flush()
        sync_descriptor(out.fileno())
    suffix = "+gzip" if start.startswith(GZIP_MAGIC) else "+zstd" if start == ZSTD_MAGIC else ""
    return size, f"sha256:{content.hexdigest()}", suffix, layer


def _image(row: LayerRow, suffix: str, config: dict[str, Any], new: NewImage) -> FoundImage:
    platform = new.platform or default_platform()
    created = datetime.fromtimestamp((new.created_ns or time.time_ns()) // 10**9, UTC)
    stamp = created.strftime("%Y-%m-%dT%H:%M:%SZ")
    fields: dict[str, Any] = {
        "created": stamp,
        "architecture": platform.architecture,
        "os": platform.os,
        **({"variant": platform.variant} if platform.variant else {}),
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [row.diff_id]},
        "history": [{"created": stamp, "comment": new.message or "Imported from -"}],
    }
    raw = msgspec.json.encode(fields)
    manifest = msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest_of(raw), "size": len(raw)},
            "layers": [
                {"mediaType": f"{_LAYER}{suffix}", "digest": row.blob, "size": row.blob_size}
            ],
        }
    )
    parsed = parse_manifest(manifest)
    assert isinstance(parsed, Manifest)
    digest = digest_of(manifest)
    documents = {digest: manifest, digest_of(raw): raw}
    return FoundImage(digest, digest, digest, parsed, parse_config(raw), documents)
