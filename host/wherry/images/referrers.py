"""Artifacts that are about another manifest, in registries without a referrers API.

OCI distribution-spec 1.1, "Unavailable Referrers API": the pusher keeps an index of them under a
tag made of the subject's digest. Two pushers at once may lose an entry: the specification has no
remedy for that.
"""

from __future__ import annotations

from typing import Any

import msgspec

from wherry.errors import ImageNotFound, RegistryError
from wherry.images.documents import Document
from wherry.images.media import OCI_INDEX
from wherry.images.registry import RegistryClient
from wherry.images.upload import RegistryWriter


def note_subject(
    client: RegistryClient, writer: RegistryWriter, repository: str, document: Document
) -> None:
    """Add a manifest that was put to the index of its subject's referrers."""
    assert document.subject is not None
    tag = document.subject.digest.replace(":", "-")
    index: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    try:
        index = _index(client.manifest(repository, tag).body, index)
    except ImageNotFound:
        pass  # the first
    if any(it.get("digest") == document.digest for it in index["manifests"]):
        return
    entry = document.descriptor() | {"artifactType": document.artifact_type}
    if document.annotations:
        entry["annotations"] = dict(document.annotations)
    index["manifests"].append(entry)
    writer.put_manifest(repository, tag, OCI_INDEX, msgspec.json.encode(index))


def _index(body: bytes, empty: dict[str, Any]) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RegistryError("the index of referrers in the registry is damaged") from error
    manifests = found.get("manifests")
    if not isinstance(manifests, list) or not all(isinstance(it, dict) for it in manifests):
        return empty
    return found
