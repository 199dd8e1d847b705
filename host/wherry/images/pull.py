"""Find an image at its source: index -> platform -> manifest -> config, all of it checked.

Nothing is stored here; what was stored before is not fetched again. Sources: a registry, and an
image layout in a directory. Layers are `layers.py`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from wherry.errors import ContentMismatch, ImageNotFound, InvalidInput, RegistryError
from wherry.images.layers import Source
from wherry.images.layout import INDEX_FILE, Layout
from wherry.images.media import (
    OCI_INDEX,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    MediaError,
    as_oci,
    check_image,
    digest_of,
    parse_config,
    parse_manifest,
)
from wherry.images.platform import Platform, choose, matches
from wherry.images.progress import PullEvent
from wherry.images.reference import is_digest
from wherry.images.registry import MAX_MANIFEST_BYTES, ManifestReply, RegistryClient
from wherry.images.spool import ArchiveLimits
from wherry.images.store_db import LayerRow

__all__ = [
    "DirectorySource",
    "FoundImage",
    "ImageLimits",
    "PullEvent",
    "RegistrySource",
    "find_image",
]

_MAX_NESTING = 3
"""Indexes that point to indexes."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may ask of us.

    Attributes:
        layers: distinct layers; more cannot be stacked (overlayfs).
        layer_bytes: a layer's uncompressed size.
        config_bytes: the config.
        archive: what an archive of images may ask.
    """

    layers: int = 500
    layer_bytes: int = 64 << 30
    config_bytes: int = 4 << 20
    archive: ArchiveLimits = field(default_factory=ArchiveLimits)


def limits_of_size(count: int) -> ImageLimits:
    """The usual limits, but that a layer, or an archive, may unpack to so many bytes."""
    return ImageLimits(layer_bytes=count, archive=ArchiveLimits(total_bytes=count))


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image at its source.

    Attributes:
        target_digest: of what the name stands for: an index or the manifest.
        export_digest: of the manifest as OCI has it, for `index.json`.
        documents: the JSON blobs (indexes, manifests, config), by digest.
    """

    target_digest: str
    manifest_digest: str
    export_digest: str
    manifest: Manifest
    config: ImageConfig
    documents: dict[str, bytes]

    @property
    def id(self) -> str:
        return self.manifest.config.digest

    @property
    def layers(self) -> list[LayerRow]:
        pairs = zip(self.manifest.layers, self.config.diff_ids, strict=True)
        return [LayerRow(diff_id, layer.digest, layer.size) for layer, diff_id in pairs]


class ImageSource(Source, Protocol):
    """Where manifests come from, too."""

    @property
    def name(self) -> str:
        """The image, for messages."""

    def manifest(self, reference: str) -> ManifestReply:
        """A manifest or index by tag or digest; errors as `RegistryClient.manifest`."""


class RegistrySource:
    """A repository of a registry."""

    def __init__(self, client: RegistryClient, repository: str, name: str) -> None:
        self._client = client
        self._repository = repository
        self.name = name

    def manifest(self, reference: str) -> ManifestReply:
        return self._client.manifest(self._repository, reference)

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        return self._client.blob(self._repository, descriptor)

    def blob_from(self, descriptor: Descriptor, start: int) -> Iterator[bytes]:
        """The bytes from `start` on."""
        return self._client.blob(self._repository, descriptor, start)

    def describe(self, descriptor: Descriptor) -> str:
        return (
            f"registry {self._client.domain}, repository {self._repository}, "
            f"blob {descriptor.digest}"
        )


class DirectorySource:
    """An OCI image layout; `index.json` is what every tag stands for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.name = str(directory)

    def manifest(self, reference: str) -> ManifestReply:
        is_blob = is_digest(reference)
        path = self._blob_path(reference) if is_blob else self._directory / INDEX_FILE
        try:
            body = path.read_bytes() if path.stat().st_size <= MAX_MANIFEST_BYTES else b""
        except OSError as error:
            raise InvalidInput(
                f"{self._directory} is not an OCI image layout: {path.name}: {error.strerror}"
            ) from error
        digest = digest_of(body)
        if is_blob and digest != reference:
            raise ContentMismatch(f"{path} is damaged: its digest is {digest}")
        return ManifestReply("" if is_blob else OCI_INDEX, digest, body)

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        path = self._blob_path(descriptor.digest)
        try:
            size = path.stat().st_size
            if size != descriptor.size:
                raise ContentMismatch(
                    f"{path}: the manifest says {descriptor.size} bytes, the file has {size}"
                )
            with path.open("rb") as file:
                while chunk := file.read(256 << 10):
                    yield chunk
        except FileNotFoundError:
            raise InvalidInput(f"{self._directory} lacks the blob {descriptor.digest}") from None

    def describe(self, descriptor: Descriptor) -> str:
        return f"image layout {self._directory}, blob {descriptor.digest}"

    def _blob_path(self, digest: str) -> Path:
        return self._directory / "blobs" / "sha256" / digest.removeprefix("sha256:")


def find_image(
    source: ImageSource,
    reference: str,
    wanted: Platform | None,
    stored: Layout,
    limits: ImageLimits,
    native: Platform,
) -> FoundImage:
    """Resolve a tag or digest to one platform's image.

    Args:
        wanted: the platform; None: `native` if there is a choice, else what there is.
        stored: documents that are there are not fetched.

    Raises:
        ImageNotFound: there is no such tag, or none for the platform; the hint names others.
        RegistryError, ContentMismatch, Unauthorized: what the source sent cannot be used.
    """
    return _Finder(source, wanted, stored, limits, native).find(reference)


class _Finder:
    def __init__(
        self,
        source: ImageSource,
        wanted: Platform | None,
        stored: Layout,
        limits: ImageLimits,
        native: Platform,
    ) -> None:
        self._source = source
        self._wanted = wanted
        self._stored = stored
        self._limits = limits
        self._native = native
        self._documents: dict[str, bytes] = {}

    def find(self, reference: str) -> FoundImage:
        reply = self._manifest(reference, None)
        target = reply.digest
        parsed = self._parse(reply)
        chosen_by_platform = False
        for _ in range(_MAX_NESTING):
            if isinstance(parsed, Manifest):
                break
            entry = self._choose(parsed)
            chosen_by_platform = entry.platform is not None
            reply = self._manifest(entry.digest, entry)
            parsed = self._parse(reply)
        if not isinstance(parsed, Manifest):
            raise RegistryError(f"{self._source.name}: its indexes are nested too deeply")
        config = self._config(parsed)
        if not chosen_by_platform:
            self._check_platform(config.platform)
        exported = as_oci(reply.body)
        self._documents[digest_of(exported)] = exported
        return FoundImage(
            target, reply.digest, digest_of(exported), parsed, config, self._documents
        )

    def _manifest(self, reference: str, entry: Descriptor | None) -> ManifestReply:
        cached = self._cached(reference, MAX_MANIFEST_BYTES) if is_digest(reference) else None
        if cached is not None:
            reply = ManifestReply(entry.media_type if entry else "", reference, cached)
        else:
            reply = self._source.manifest(reference)
        if entry is not None and len(reply.body) != entry.size:
            raise ContentMismatch(
                f"{self._source.describe(entry)}: the index says {entry.size} bytes, "
                f"it has {len(reply.body)}"
            )
        self._documents[reply.digest] = reply.body
        return reply

    def _cached(self, digest: str, limit: int) -> bytes | None:
        return self._stored.cached(digest, limit)

    def _parse(self, reply: ManifestReply) -> Index | Manifest:
        try:
            return parse_manifest(reply.body, reply.media_type)
        except MediaError as error:
            raise RegistryError(f"{self._source.name}: {error}") from error

    def _choose(self, index: Index) -> Descriptor:
        wanted = self._wanted or self._native
        entry = choose(wanted, index.manifests, index.platform_of)
        if entry is None:
            offered = index.platforms()
            raise ImageNotFound(
                f"no matching manifest for {wanted} in the manifest list entries of "
                f"{self._source.name}",
                hint=_offer(offered),
            )
        return entry

    def _config(self, manifest: Manifest) -> ImageConfig:
        descriptor = manifest.config
        whose = self._source.describe(descriptor)
        if descriptor.size > self._limits.config_bytes:
            raise RegistryError(f"{whose}: a config of {descriptor.size} bytes is too large")
        data = self._cached(descriptor.digest, descriptor.size)
        if data is None:
            data = b"".join(self._source.blob(descriptor))
        if (found := digest_of(data)) != descriptor.digest:
            raise ContentMismatch(f"{whose}: its content has the digest {found}")
        try:
            config = parse_config(data)
            check_image(manifest, config, self._limits.layers)
        except MediaError as error:
            raise RegistryError(f"{self._source.name}: {error}") from error
        self._documents[descriptor.digest] = data
        return config

    def _check_platform(self, found: Platform) -> None:
        """An image that says its platform only in its config."""
        wanted = self._wanted
        if (wanted is None and found.os == "linux") or (wanted and matches(wanted, found)):
            return
        raise ImageNotFound(
            f"image with reference {self._source.name} was found but does not match the specified "
            f"platform: wanted {wanted or self._native}, actual: {found}",
            hint=_offer([str(found)]),
        )


def _offer(platforms: list[str]) -> str:
    """What to say of an image that has none for the platform that is wanted."""
    if not platforms:
        return "its index is empty"
    if all(platform.startswith("windows") for platform in platforms):
        return "it is an image for Windows: those need a Windows kernel, and the machine runs Linux"
    return f"it has: {', '.join(platforms)}"
