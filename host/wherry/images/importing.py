"""An image of one layer, of a root file system's tar (`receiving.py`)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from wherry.errors import ContentMismatch, InvalidInput
from wherry.images.changes import apply_changes
from wherry.images.media import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Manifest,
    digest_of,
    parse_config,
    parse_manifest,
)
from wherry.images.parts import Parts, objects_of
from wherry.images.platform import Platform
from wherry.images.progress import Reporter
from wherry.images.pull import FoundImage
from wherry.images.receiving import ReceivedLayer, receive_layer
from wherry.images.taking import take
from wherry.images.tar import LayerError

LEASE_SECONDS = 24 * 3600.0


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
        try:
            layer = receive_layer(chunks, directory, parts.limits.layer_bytes)
        except (LayerError, ContentMismatch) as error:
            raise InvalidInput(
                f"cannot import: {error.message}",
                hint=error.hint or "import takes the tar of a root file system",
            ) from error
        found = _image(layer, config, new, parts.native)
        holder = f"import:{directory.name}"
        try:
            parts.db.lease(holder, objects_of([layer.row], found.documents), LEASE_SECONDS)
            layer.keep(parts)
            take(parts, found, None, tag, None, reporter, holder=f"{holder}:1")
        finally:
            parts.db.release(holder)
            parts.settle()
    return found.id


def _image(
    layer: ReceivedLayer, config: dict[str, Any], new: NewImage, native: Platform
) -> FoundImage:
    row = layer.row
    platform = new.platform or native
    seconds, nanoseconds = divmod(new.created_ns or time.time_ns(), 10**9)
    created = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    stamp = f"{created}.{nanoseconds:09d}Z"  # so that two imports of one tar are two images
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
            "layers": [{"mediaType": layer.media_type, "digest": row.blob, "size": row.blob_size}],
        }
    )
    parsed = parse_manifest(manifest)
    assert isinstance(parsed, Manifest)
    digest = digest_of(manifest)
    documents = {digest: manifest, digest_of(raw): raw}
    return FoundImage(digest, digest, digest, parsed, parse_config(raw), documents)
