"""Layers that are stored uncompressed, compressed for a push: once, and remembered.

Only the manifest and the blobs change, not the config: the image keeps its id. As Docker does, gzip
is used, which every registry and tool takes. The same machine gives the same bytes each time; other
versions of the compressor may not, hence the note of what a diffID became (`remotes.py`).
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from wherry.images.attempts import Stopped
from wherry.images.compress import GZIP_MAGIC, ZSTD_MAGIC, fast_zlib
from wherry.images.documents import Document, parse_document
from wherry.images.ingest import move_into_place
from wherry.images.media import Descriptor
from wherry.images.parts import Parts
from wherry.images.remotes import Remotes
from wherry.osutil import cpu_count, sync_descriptor

_GZIP_TYPES = {
    "application/vnd.oci.image.layer.v1.tar": "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar": (
        "application/vnd.docker.image.rootfs.diff.tar.gzip"
    ),
}
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_FAST_LEVEL = 2
"""isal's: as small as zlib's level 1, at four times the speed."""
_LEVEL = 6
_READ_BYTES = 1 << 20

LEASE_SECONDS = 24 * 3600.0
"""How long a push that was killed keeps what it was to send."""


def with_compressed_layers(
    parts: Parts,
    remotes: Remotes,
    document: Document,
    holder: str,
    stop: threading.Event,
) -> Document:
    """The manifest with gzip in the place of uncompressed layers; the same one when it has none.

    Args:
        holder: whose lease is to keep the new blobs.
    """
    plain = [it for it in document.blobs if it.media_type in _GZIP_TYPES and _is_plain(parts, it)]
    if not plain:
        return document

    def compressed(layer: Descriptor) -> tuple[str, Descriptor]:
        return layer.digest, _compressed(parts, remotes, layer, holder, stop)

    with ThreadPoolExecutor(cpu_count(), "gzip") as pool:
        try:
            replaced = dict(pool.map(compressed, {it.digest: it for it in plain}.values()))
        except BaseException:
            stop.set()
            raise
    fields = msgspec.json.decode(document.body, type=dict[str, Any])
    fields["layers"] = [_replaced(layer, replaced) for layer in fields["layers"]]
    return parse_document(msgspec.json.encode(fields), document.media_type)


def _is_plain(parts: Parts, layer: Descriptor) -> bool:
    """Whether the blob is there and is really uncompressed: media types may be wrong."""
    try:
        with parts.layout.blob_path(layer.digest).open("rb") as file:
            start = file.read(len(ZSTD_MAGIC))
    except FileNotFoundError:
        return False
    return not start.startswith((GZIP_MAGIC, ZSTD_MAGIC))


def _compressed(
    parts: Parts,
    remotes: Remotes,
    layer: Descriptor,
    holder: str,
    stop: threading.Event,
) -> Descriptor:
    media_type = _GZIP_TYPES[layer.media_type]
    with parts.ingest.working_on(layer.digest, stop=stop):
        if known := remotes.compressed(layer.digest):
            parts.db.lease(holder, [known], LEASE_SECONDS)
            try:
                size = parts.layout.blob_path(known).stat().st_size
                return Descriptor(media_type, known, size)
            except FileNotFoundError:
                pass  # it was removed since: once more
        with parts.ingest.new_file(layer.digest, "gzip") as target:
            digest, size = _write_gzip(parts, layer.digest, target, stop)
            parts.db.lease(holder, [digest], LEASE_SECONDS)
            if not parts.layout.has(digest, size):
                move_into_place(target, parts.layout.blob_path(digest))
            remotes.note_compressed(layer.digest, digest)
        return Descriptor(media_type, digest, size)


def _write_gzip(parts: Parts, blob: str, target: Path, stop: threading.Event) -> tuple[str, int]:
    level = _LEVEL if fast_zlib is zlib else _FAST_LEVEL
    coder = fast_zlib.compressobj(level, zlib.DEFLATED, _GZIP_WINDOW)
    digest, size = hashlib.sha256(), 0
    with parts.layout.blob_path(blob).open("rb") as source, target.open("xb") as out:
        while True:
            if stop.is_set():
                raise Stopped
            piece = source.read(_READ_BYTES)
            data = coder.compress(piece) if piece else coder.flush()
            digest.update(data)
            size += len(data)
            out.write(data)
            if not piece:
                break
        out.flush()
        sync_descriptor(out.fileno())
    return f"sha256:{digest.hexdigest()}", size


def _replaced(layer: dict[str, Any], replaced: dict[str, Descriptor]) -> dict[str, Any]:
    new = replaced.get(layer["digest"])
    if new is None:
        return layer
    return layer | {"mediaType": new.media_type, "digest": new.digest, "size": new.size}
