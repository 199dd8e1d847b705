"""An image made of another one and one more layer: `docker commit`.

The parent's layers are shared, not copied. A layer without entries is none: only the config has
changed then, and the history says so (`empty_layer`), as in Docker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from wherry.errors import InvalidInput, StorageError
from wherry.images.image import Image
from wherry.images.media import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Manifest,
    as_oci,
    check_image,
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

LEASE_SECONDS = 24 * 3600.0

EMPTY_LAYER = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
"""The diffID of a tar without entries, two blocks of zeros; Docker's name for it is the same."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What the new image says of itself.

    Attributes:
        config: the OCI image config's "config".
        platform: of the files in it.
        created_ns: nanoseconds since the epoch.
        created_by, comment, author: of the new step in its history.
        annotations: of its manifest.
    """

    config: Mapping[str, Any]
    platform: Platform
    created_ns: int
    created_by: str = ""
    comment: str = ""
    author: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)


def commit_image(
    parts: Parts, parent: Image | None, chunks: Iterator[bytes], commit: Commit, tag: str | None
) -> str:
    """Make the image; its id.

    Args:
        parent: whose blobs somebody holds; it need not be listed. None: the layer is the first one.
        chunks: the layer's tar, in one pass.
        tag: the full name that it gets.

    Raises:
        LayerError, ContentMismatch: the layer is damaged or hostile; nothing is stored.
        InvalidInput: the image would have too many layers.
    """
    with parts.ingest.spool() as directory:
        layer: ReceivedLayer | None = receive_layer(chunks, directory, parts.limits.layer_bytes)
        assert layer is not None
        if layer.row.diff_id == EMPTY_LAYER:
            layer = None
        found = _image(parts, parent, layer, commit)
        holder = f"commit:{directory.name}"
        try:
            parts.db.lease(holder, objects_of(found.layers, found.documents), LEASE_SECONDS)
            if layer is not None:
                layer.keep(parts)
            take(parts, found, None, tag, None, Reporter(None), holder=f"{holder}:1")
        finally:
            parts.db.release(holder)
            parts.settle()
    return found.id


def _image(
    parts: Parts, parent: Image | None, layer: ReceivedLayer | None, commit: Commit
) -> FoundImage:
    old_config, old_layers = _of_parent(parts, parent) if parent is not None else ({}, [])
    raw = msgspec.json.encode(_config(old_config, layer, commit))
    layers = list(old_layers)
    if layer is not None:
        row = layer.row
        layers.append({"mediaType": layer.media_type, "digest": row.blob, "size": row.blob_size})
    fields: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest_of(raw), "size": len(raw)},
        "layers": layers,
    }
    if commit.annotations:
        fields["annotations"] = dict(commit.annotations)
    body = msgspec.json.encode(fields)
    manifest, config = parse_manifest(body), parse_config(raw)
    assert isinstance(manifest, Manifest)
    try:
        check_image(manifest, config, parts.limits.layers)
    except ValueError as error:
        raise InvalidInput(f"cannot commit: {error}") from error
    digest = digest_of(body)
    documents = {digest: body, digest_of(raw): raw}
    return FoundImage(digest, digest, digest, manifest, config, documents)


def _of_parent(parts: Parts, parent: Image) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The parent's config and its layers' descriptors."""
    config: dict[str, Any] = msgspec.json.decode(parts.layout.read(parent.id))
    manifest = msgspec.json.decode(as_oci(parts.layout.read(parent.manifest_digest)))
    if "layers" not in manifest:
        raise StorageError(f"blob {parent.manifest_digest} is no manifest")
    return config, manifest["layers"]


def _config(old: Mapping[str, Any], layer: ReceivedLayer | None, commit: Commit) -> dict[str, Any]:
    """The new image's config: the parent's, as far as OCI knows it, with what is new."""
    created = datetime.fromtimestamp(commit.created_ns // 10**9, UTC)
    stamp = created.strftime("%Y-%m-%dT%H:%M:%SZ")
    diff_ids = list((old.get("rootfs") or {}).get("diff_ids") or [])
    history = [dict(record) for record in old.get("history") or []]
    # A record for each layer before ours: readers count them.
    known = sum(not record.get("empty_layer") for record in history)
    history += [{} for _ in range(len(diff_ids) - known)]
    step: dict[str, Any] = {"created": stamp}
    for name in ("created_by", "comment", "author"):
        if value := getattr(commit, name):
            step[name] = value
    if layer is None:
        step["empty_layer"] = True
    else:
        diff_ids.append(layer.row.diff_id)
    platform = commit.platform
    return {
        "created": stamp,
        **({"author": commit.author} if commit.author else {}),
        "architecture": platform.architecture,
        "os": platform.os,
        **({"variant": platform.variant} if platform.variant else {}),
        "config": dict(commit.config),
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [*history, step],
    }
