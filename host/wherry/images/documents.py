"""Manifests and indexes of any kind, as what they point to. Sans-I/O.

For copying what is not understood: artifacts, attestations, media types of tomorrow. `media.py` is
strict, for images that are to run; here only digests and sizes are checked, and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from wherry.images.media import (
    DOCKER_SCHEMA1,
    INDEX_TYPES,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    MediaError,
    check_descriptor,
    digest_of,
    is_foreign,
)


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or index, byte for byte.

    Attributes:
        children: what an index points to, in its order.
        blobs: config and layers; without those that registries do not have (foreign ones).
        subject: the manifest that this one is about (OCI 1.1).
        artifact_type: its own, else its config's media type.
        annotations: its own.
    """

    media_type: str
    digest: str
    body: bytes
    children: tuple[Descriptor, ...] = ()
    blobs: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    artifact_type: str = ""
    annotations: Mapping[str, str] | None = None

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEX_TYPES or bool(self.children)

    def descriptor(self) -> dict[str, Any]:
        """How an index names it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.body)}


class _Fields(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int = 2
    media_type: str = ""
    artifact_type: str = ""
    manifests: list[Descriptor] | None = None
    config: Descriptor | None = None
    layers: list[Descriptor] | None = None
    blobs: list[Descriptor] | None = None
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


def parse_document(body: bytes, media_type: str = "") -> Document:
    """Read a manifest or index.

    Args:
        media_type: what an HTTP header or an index says; used when the JSON does not say it.

    Raises:
        MediaError: no JSON of that form, schema 1, or a digest or size that cannot be.
    """
    try:
        fields = msgspec.json.decode(body, type=_Fields)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MediaError(f"the manifest is malformed: {error}") from error
    said = fields.media_type or media_type.split(";")[0].strip()
    if fields.schema_version != 2 or said in DOCKER_SCHEMA1:
        raise MediaError("it is a schema 1 manifest, which Docker and OCI have retired")
    children = fields.manifests or []
    pointed = [fields.config] if fields.config else []
    pointed += [*(fields.layers or []), *(fields.blobs or [])]
    for descriptor in [*children, *pointed, *([fields.subject] if fields.subject else [])]:
        check_descriptor(descriptor)
    if fields.manifests is None and fields.config is None and fields.layers is None:
        raise MediaError(f"{said or 'content without a media type'} is no manifest")
    return Document(
        media_type=said or (OCI_INDEX if fields.manifests is not None else OCI_MANIFEST),
        digest=digest_of(body),
        body=body,
        children=tuple(children),
        blobs=tuple(blob for blob in pointed if not is_foreign(blob.media_type)),
        subject=fields.subject,
        artifact_type=fields.artifact_type or (fields.config.media_type if fields.config else ""),
        annotations=fields.annotations,
    )


def distinct(descriptors: Sequence[Descriptor]) -> list[Descriptor]:
    """Each digest once, in order."""
    return list({descriptor.digest: descriptor for descriptor in reversed(descriptors)}.values())[
        ::-1
    ]
