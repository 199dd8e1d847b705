"""Manifests and configs in a registry, looked at without storing anything."""

from __future__ import annotations

from typing import Any

import msgspec

from wherry.errors import ContentMismatch, RegistryError
from wherry.images.documents import Document, parse_document
from wherry.images.media import CONFIG_TYPES, Descriptor, MediaError, digest_of
from wherry.images.reference import Reference
from wherry.images.registry import RegistryClient

_MAX_CONFIG_BYTES = 4 << 20
_PLATFORM_FIELDS = ("architecture", "os", "variant", "os.version", "os.features")


def fetch_document(client: RegistryClient, reference: Reference) -> Document:
    """A manifest or index; errors as `RegistryClient.manifest`'s."""
    reply = client.manifest(reference.path, reference.digest or reference.tag or "")
    try:
        return parse_document(reply.body, reply.media_type)
    except MediaError as error:
        raise RegistryError(f"{reference.familiar}: {error}") from error


def platforms_of(
    client: RegistryClient, reference: Reference, document: Document
) -> list[dict[str, Any]]:
    """The platforms of an index; of a manifest the one that its config says."""
    if document.is_index:
        entries = msgspec.json.decode(document.body)["manifests"]
        return [it["platform"] for it in entries if it.get("platform")]
    config = document.blobs[0] if document.blobs else None
    if config is None or config.media_type not in CONFIG_TYPES:
        return []
    return [config_platform(client, reference.path, config)]


def config_platform(client: RegistryClient, repository: str, config: Descriptor) -> dict[str, Any]:
    """The platform in an image config, as an index would say it."""
    place = f"registry {client.domain}, repository {repository}, blob {config.digest}"
    if config.size > _MAX_CONFIG_BYTES:
        raise RegistryError(f"{place}: a config of {config.size} bytes is too large")
    data = b"".join(client.blob(repository, config))
    if digest_of(data) != config.digest:
        raise ContentMismatch(f"{place}: its content has the digest {digest_of(data)}")
    try:
        fields = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RegistryError(f"{place}: the config is malformed: {error}") from error
    return {name: fields[name] for name in _PLATFORM_FIELDS if fields.get(name)}
