"""Media types and schemas of images: OCI image-spec 1.1 and Docker's image manifest v2 schema 2.

Sans-I/O: bytes in, values out. What these bytes say comes from strangers: sizes, counts and
digests are checked here, once, so that the rest can rely on them. A fault is a `MediaError`,
one line; the caller says whose content it was.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from dataclasses import dataclass
from typing import Any

import msgspec

from wherry.images.platform import Platform, normalise
from wherry.images.reference import is_digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_SCHEMA1 = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST))

REF_NAME = "org.opencontainers.image.ref.name"
"""OCI image-spec 1.1, annotations: the name of a descriptor in an index.json."""
CONTAINERD_NAME = "io.containerd.image.name"
"""The full name beside it, as containerd and Docker write it."""

LAYER_TYPES = re.compile(
    r"application/vnd\.oci\.image\.layer\.v1\.tar(\+gzip|\+zstd)?"
    r"|application/vnd\.docker\.image\.rootfs\.diff\.tar(\.gzip|\.zstd)?"
)
_OCI_LAYERS = {
    "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": (
        "application/vnd.oci.image.layer.v1.tar+gzip"
    ),
    "application/vnd.docker.image.rootfs.diff.tar.zstd": (
        "application/vnd.oci.image.layer.v1.tar+zstd"
    ),
}
_FOREIGN = re.compile(r".*(nondistributable|foreign).*")
_MAX_SIZE = 1 << 50


class MediaError(ValueError):
    """The content is not what its media type says. The message is one line."""


class RawPlatform(msgspec.Struct, frozen=True):
    """OCI image-spec, image-index.md, `platform`."""

    architecture: str = ""
    os: str = ""
    variant: str | None = None

    def normalised(self) -> Platform:
        return normalise(self.os, self.architecture, self.variant or "")


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """OCI image-spec, descriptor.md."""

    media_type: str
    digest: str
    size: int
    platform: RawPlatform | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None

    @property
    def short(self) -> str:
        """The twelve digits that progress lines show."""
        return self.digest.removeprefix("sha256:")[:12]


class Index(msgspec.Struct, frozen=True, rename="camel"):
    """OCI image index, Docker manifest list."""

    schema_version: int
    manifests: list[Descriptor]
    media_type: str | None = None

    def platform_of(self, entry: Descriptor) -> Platform | None:
        return entry.platform.normalised() if entry.platform else None

    def platforms(self) -> list[str]:
        """The platforms on offer, for messages; attestations (unknown/unknown) are left out."""
        named = [str(p) for entry in self.manifests if (p := self.platform_of(entry))]
        return sorted({name for name in named if not name.startswith("unknown")})


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """OCI image manifest, Docker image manifest v2 schema 2."""

    schema_version: int
    config: Descriptor
    layers: list[Descriptor]
    media_type: str | None = None
    annotations: dict[str, str] | None = None


class RootFs(msgspec.Struct, frozen=True):
    type: str = "layers"
    diff_ids: list[str] | None = None


class HistoryRecord(msgspec.Struct, frozen=True):
    """OCI image-spec, config.md, `history`."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool | None = None


class RawConfig(msgspec.Struct, frozen=True):
    """OCI image-spec, config.md; Docker's image JSON."""

    architecture: str = ""
    os: str = ""
    variant: str | None = None
    created: str | None = None
    author: str | None = None
    config: dict[str, Any] | None = None
    rootfs: RootFs | None = None
    history: list[HistoryRecord] | None = None


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """An image config, checked.

    Attributes:
        platform: where it runs.
        created_ns: nanoseconds since the epoch; 0 when it does not say.
        config: what containers inherit (`Env`, `Cmd`, …), as in the JSON.
        diff_ids: digests of the uncompressed layers, lowest first.
        history: records, oldest first.
    """

    platform: Platform
    created_ns: int
    author: str
    config: dict[str, Any]
    diff_ids: tuple[str, ...]
    history: tuple[HistoryRecord, ...]


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def is_foreign(media_type: str) -> bool:
    """Whether content of this type is not kept in registries (layers that only a vendor hands
    out)."""
    return _FOREIGN.fullmatch(media_type) is not None


def parse_manifest(data: bytes, media_type: str | None = None) -> Index | Manifest:
    """An index or a manifest; `media_type` (an HTTP header's) is used when the JSON has none.

    Raises:
        MediaError: not JSON, schema 1, an unknown type, or a field of the wrong type or value.
    """
    fields = _decode(data, dict[str, Any], "the manifest")
    said = fields.get("mediaType")
    kind = said if isinstance(said, str) and said else (media_type or "").split(";")[0].strip()
    if fields.get("schemaVersion") == 1 or kind in DOCKER_SCHEMA1:
        raise MediaError("it is a schema 1 manifest, which Docker and OCI have retired")
    if kind in INDEX_TYPES or (kind not in MANIFEST_TYPES and "manifests" in fields):
        return _checked_index(_decode(data, Index, "the index"))
    if kind in MANIFEST_TYPES or "layers" in fields:
        return _checked_manifest(_decode(data, Manifest, "the manifest"))
    raise MediaError(f"{kind or 'content without a media type'} is not an image manifest")


def as_oci(data: bytes) -> bytes:
    """The OCI manifest that says the same as a (checked) Docker manifest; an OCI one as it is.

    Tools that read image layouts know no other kind (skopeo does not find a schema 2 manifest).
    """
    fields = _decode(data, dict[str, Any], "the manifest")
    if fields.get("mediaType") != DOCKER_MANIFEST:
        return data
    layers = [
        layer | {"mediaType": _OCI_LAYERS.get(layer["mediaType"], layer["mediaType"])}
        for layer in fields["layers"]
    ]
    config = fields["config"] | {"mediaType": OCI_CONFIG}
    oci = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
    return msgspec.json.encode(oci)


def parse_config(data: bytes) -> ImageConfig:
    """An image config.

    Raises:
        MediaError: not JSON, or a field of the wrong type or value.
    """
    raw = _decode(data, RawConfig, "the image config")
    diff_ids = tuple((raw.rootfs.diff_ids if raw.rootfs else None) or ())
    for diff_id in diff_ids:
        if not is_digest(diff_id):
            raise MediaError(f"the image config has a diffID that is no SHA-256: {diff_id[:80]!r}")
    return ImageConfig(
        platform=normalise(raw.os or "linux", raw.architecture or "unknown", raw.variant or ""),
        created_ns=parse_time(raw.created),
        author=raw.author or "",
        config=raw.config or {},
        diff_ids=diff_ids,
        history=tuple(raw.history or ()),
    )


def check_image(manifest: Manifest, config: ImageConfig, max_layers: int) -> None:
    """Check that manifest and config belong together.

    Raises:
        MediaError: numbers of layers and diffIDs differ, one blob has two diffIDs, too many layers.
    """
    if len(manifest.layers) != len(config.diff_ids):
        raise MediaError(
            f"the manifest has {len(manifest.layers)} layers, the config {len(config.diff_ids)}"
        )
    if len(set(config.diff_ids)) > max_layers:
        raise MediaError(
            f"the image has {len(set(config.diff_ids))} layers, at most {max_layers} can be stacked"
        )
    seen: dict[str, tuple[str, int]] = {}
    for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
        if seen.setdefault(layer.digest, (diff_id, layer.size)) != (diff_id, layer.size):
            raise MediaError(f"layer {layer.digest} stands for two different contents")


def parse_time(text: str | None) -> int:
    """RFC 3339 to nanoseconds since the epoch; 0 for None, "" and what cannot be read."""
    match = re.fullmatch(r"(.{10}[Tt ].{8})(?:\.(\d{1,9})\d*)?([Zz]|[+-]\d\d:\d\d)", text or "")
    if match is None:
        return 0
    zone = "+00:00" if match[3] in "Zz" else match[3]
    try:
        moment = datetime.datetime.fromisoformat(match[1] + zone)
    except ValueError:
        return 0
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    seconds = (moment - epoch) // datetime.timedelta(seconds=1)
    return seconds * 1_000_000_000 + int((match[2] or "0").ljust(9, "0"))


def _decode(data: bytes, kind: type[Any], what: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MediaError(f"{what} is malformed: {error}") from error


def _checked_index(index: Index) -> Index:
    for entry in index.manifests:
        check_descriptor(entry)
    return index


def _checked_manifest(manifest: Manifest) -> Manifest:
    check_descriptor(manifest.config)
    if manifest.config.media_type not in CONFIG_TYPES:
        raise MediaError(
            f"it is no container image: its config is of type {manifest.config.media_type}"
        )
    for layer in manifest.layers:
        check_descriptor(layer)
        if is_foreign(layer.media_type):
            raise MediaError(f"layer {layer.short} is not distributed by registries (foreign)")
        if not LAYER_TYPES.fullmatch(layer.media_type):
            raise MediaError(f"layer {layer.short} is of unknown type {layer.media_type}")
    return manifest


def check_descriptor(descriptor: Descriptor) -> None:
    """Raises MediaError: its digest is no SHA-256, or its size is impossible."""
    if not is_digest(descriptor.digest):
        raise MediaError(f"{descriptor.digest[:80]!r} is not a SHA-256 digest")
    if not 0 <= descriptor.size <= _MAX_SIZE:
        raise MediaError(f"{descriptor.digest} has the impossible size {descriptor.size}")
