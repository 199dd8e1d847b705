"""The documents of image archives: Docker's manifest.json, an image layout's index.json. Pure.

Sources: moby image/spec/v1.2.md ("Combined Image JSON + Filesystem Changeset Format"); OCI
image-spec 1.1, image-layout.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from wherry.errors import InvalidInput, InvalidReference
from wherry.images.media import CONTAINERD_NAME, REF_NAME, Index, MediaError, parse_manifest
from wherry.images.reference import DEFAULT_TAG, parse_tagged
from wherry.images.spool import WHAT

IMAGES_MAX = 1000
"""Images in one archive."""


class _DockerItem(msgspec.Struct, frozen=True, rename="pascal"):
    config: str
    layers: list[str] | None = None
    repo_tags: list[str] | None = None


@dataclass(frozen=True, slots=True)
class DockerEntry:
    """An element of manifest.json: names of files in the archive, and full names of the image."""

    config: str
    layers: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OciEntry:
    """An element of index.json; `name` is full, or None."""

    digest: str
    name: str | None


def docker_entries(data: bytes | None) -> list[DockerEntry]:
    """The images of a manifest.json; none when there is none.

    Raises:
        InvalidInput: it is malformed, or a name is none.
    """
    if data is None:
        return []
    try:
        items = msgspec.json.decode(data, type=list[_DockerItem])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{WHAT}: manifest.json is malformed: {error}") from error
    _check_count(len(items))
    return [
        DockerEntry(
            item.config,
            tuple(item.layers or ()),
            tuple(dict.fromkeys(_full_name(name) for name in item.repo_tags or ())),
        )
        for item in items
    ]


def oci_entries(data: bytes) -> list[OciEntry]:
    """The images of an index.json.

    Raises:
        InvalidInput: it is malformed.
    """
    try:
        index = parse_manifest(data, "application/vnd.oci.image.index.v1+json")
    except MediaError as error:
        raise InvalidInput(f"{WHAT}: index.json: {error}") from error
    if not isinstance(index, Index):
        raise InvalidInput(f"{WHAT}: index.json is no index")
    _check_count(len(index.manifests))
    return [OciEntry(it.digest, _oci_name(it.annotations or {})) for it in index.manifests]


def _check_count(count: int) -> None:
    if count > IMAGES_MAX:
        raise InvalidInput(f"{WHAT} has {count} images, more than {IMAGES_MAX}")


def _oci_name(annotations: dict[str, str]) -> str | None:
    """containerd's full name; else what the layout calls it, where that can be a name."""
    if full := annotations.get(CONTAINERD_NAME):
        return _full_name(full)
    name = annotations.get(REF_NAME)
    if not name or name == DEFAULT_TAG:  # a tag of something that is not said
        return None
    try:
        return str(parse_tagged(name))
    except InvalidReference:  # the layout's grammar allows more
        return None


def _full_name(name: str) -> str:
    try:
        return str(parse_tagged(name))
    except InvalidReference as error:
        raise InvalidInput(f"{WHAT}: {error.message}") from error
