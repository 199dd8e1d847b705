"""`load`: image archives as Docker, podman, skopeo and we write them, into the store.

Two forms, told apart by what the archive holds, mixed in one since Docker 25: an OCI image layout
(`index.json`, `blobs/`), and Docker's own (`manifest.json`, moby's image/spec/v1.2.md). Where both
are there, the layout says what the images are and `manifest.json` what they are called. An archive
is taken whole or not at all: names are given when every layer of every image is stored.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from wherry.errors import InvalidInput
from wherry.images.archives import DockerEntry, OciEntry, docker_entries, oci_entries
from wherry.images.compress import GZIP_MAGIC, ZSTD_MAGIC
from wherry.images.ingest import move_into_place
from wherry.images.layout import INDEX_FILE
from wherry.images.media import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    MediaError,
    check_image,
    digest_of,
    parse_config,
    parse_manifest,
)
from wherry.images.parts import Parts, objects_of
from wherry.images.platform import Platform
from wherry.images.progress import Reporter
from wherry.images.pull import FoundImage, find_image
from wherry.images.reference import parse_reference
from wherry.images.registry import ManifestReply
from wherry.images.spool import WHAT, Archive, SpooledFile, read_archive
from wherry.images.store_db import LayerRow
from wherry.images.taking import take

LOAD_LEASE_SECONDS = 24 * 3600.0
"""A load that was killed gives back what it had after that."""
_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image that was loaded.

    Attributes:
        id: its id.
        names: familiar names that the archive gave it.
        renamed: names that pointed to another image until now.
    """

    id: str
    names: tuple[str, ...]
    renamed: tuple[str, ...]


def load(
    parts: Parts, chunks: Iterator[bytes], wanted: Platform | None, reporter: Reporter
) -> Sequence[Loaded]:
    """Store all images of an archive.

    Args:
        chunks: a tar, plain or compressed with gzip or zstd.
        wanted: of images for several platforms; None: this machine's.

    Raises:
        InvalidInput, ContentMismatch, ImageNotFound: nothing of the archive is stored.
    """
    with parts.ingest.spool() as directory:
        archive = read_archive(chunks, directory, parts.limits.archive)
        images = _images(parts, archive, wanted)
        if not images:
            raise InvalidInput(
                "there are no images in the archive",
                hint="it must be made by `save`; a root file system is taken by `import`",
            )
        return _Load(parts, archive, reporter).take(images)


@dataclass(frozen=True, slots=True)
class _FoundNamed:
    found: FoundImage
    names: tuple[str, ...]


class _Load:
    def __init__(self, parts: Parts, archive: Archive, reporter: Reporter) -> None:
        self._parts = parts
        self._archive = archive
        self._reporter = reporter
        self._holder = f"load:{secrets.token_hex(8)}"

    def take(self, images: Sequence[_FoundNamed]) -> Sequence[Loaded]:
        parts = self._parts
        layers = list({it.blob: it for image in images for it in image.found.layers}.values())
        documents = [name for image in images for name in image.found.documents]
        try:
            objects = objects_of(layers, documents)
            parts.db.lease(self._holder, objects, LOAD_LEASE_SECONDS)
            for layer in layers:
                self._adopt(layer)
            parts.layers.ensure(layers, None, self._reporter)
            return [self._store(image, n) for n, image in enumerate(images)]
        finally:
            for n in range(len(images)):
                parts.db.release(self._holder_of(n))
            parts.db.release(self._holder)
            parts.settle()

    def _holder_of(self, number: int) -> str:
        """Of the lease until that image is stored: it ends then."""
        return f"{self._holder}:{number}"

    def _adopt(self, layer: LayerRow) -> None:
        """Make a file of the archive a blob, unless the blob or all of the layer is there."""
        parts = self._parts
        with parts.ingest.working_on(layer.blob):
            if parts.layers.is_present(layer) or parts.layout.has(layer.blob, layer.blob_size):
                return
            file = self._archive.by_digest(layer.blob)
            if file is None:
                raise InvalidInput(f"{WHAT} lacks layer {layer.blob}")
            move_into_place(file.path, parts.layout.blob_path(layer.blob))

    def _store(self, image: _FoundNamed, number: int) -> Loaded:
        parts = self._parts
        before = {name: parts.db.tag_target(name) for name in image.names}
        holder = self._holder_of(number)
        tag = image.names[0] if image.names else None
        take(parts, image.found, None, tag, None, self._reporter, holder=holder)
        for name in image.names[1:]:
            parts.db.set_tag(name, image.found.id)
        moved = [name for name, old in before.items() if old not in (None, image.found.id)]
        return Loaded(image.found.id, _familiar(image.names), _familiar(moved))


def _familiar(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(parse_reference(name).familiar for name in names)


def _images(parts: Parts, archive: Archive, wanted: Platform | None) -> list[_FoundNamed]:
    docker = docker_entries(archive.document("manifest.json"))
    names = {
        file.digest: entry.names
        for entry in docker
        if (file := archive.file(entry.config)) is not None
    }
    index = archive.document(INDEX_FILE)
    if index is None:
        return [_docker_image(parts, archive, entry) for entry in docker]
    source = ArchiveSource(archive)
    images: dict[str, _FoundNamed] = {}
    for entry in oci_entries(index):
        found = find_image(source, entry.digest, wanted, parts.layout, parts.limits, parts.native)
        _check_layers(archive, parts, found)
        called = names.get(found.id) or _names(entry)
        known = images.get(found.id)
        called = tuple(dict.fromkeys([*(known.names if known else ()), *called]))
        images[found.id] = _FoundNamed(found, called)
    return list(images.values())


def _names(entry: OciEntry) -> tuple[str, ...]:
    return (entry.name,) if entry.name else ()


def _check_layers(archive: Archive, parts: Parts, found: FoundImage) -> None:
    """Say early, and without having stored anything, that a layer is not there or another one."""
    for layer in found.layers:
        file = archive.blob(layer.blob)
        if file is None and not parts.layers.is_present(layer):
            raise InvalidInput(f"{WHAT} lacks layer {layer.blob}")
        if file is not None and file.size != layer.blob_size:
            raise InvalidInput(
                f"{WHAT}: layer {layer.blob} has {file.size} bytes, not {layer.blob_size}"
            )


class ArchiveSource:
    """An image layout in an archive: manifests and configs (layers are taken as files)."""

    name = WHAT

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def manifest(self, reference: str) -> ManifestReply:
        return ManifestReply("", reference, self._read(reference))

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        yield self._read(descriptor.digest)

    def describe(self, descriptor: Descriptor) -> str:
        return f"{WHAT}, blob {descriptor.digest}"

    def _read(self, digest: str) -> bytes:
        if self._archive.blob(digest) is None:
            raise InvalidInput(f"{WHAT} lacks blob {digest}")
        return self._archive.document(f"blobs/sha256/{digest.removeprefix('sha256:')}") or b""


def _docker_image(parts: Parts, archive: Archive, entry: DockerEntry) -> _FoundNamed:
    """An image of which the archive has config and layers, but no manifest: it gets one."""
    raw = archive.document(entry.config)
    if raw is None:
        raise InvalidInput(f"{WHAT} lacks the image config {entry.config[:200]}")
    layers = []
    for name in entry.layers:
        file = archive.file(name)
        if file is None:
            raise InvalidInput(f"{WHAT} lacks the layer {name[:200]}")
        layers.append(_descriptor(f"{_LAYER}{_suffix(file)}", file.digest, file.size))
    manifest = msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _descriptor(OCI_CONFIG, digest_of(raw), len(raw)),
            "layers": layers,
        }
    )
    try:
        config = parse_config(raw)
        parsed = parse_manifest(manifest)
        assert isinstance(parsed, Manifest)
        check_image(parsed, config, parts.limits.layers)
    except MediaError as error:
        raise InvalidInput(f"{WHAT}: {error}") from error
    digest = digest_of(manifest)
    documents = {digest: manifest, digest_of(raw): raw}
    found = FoundImage(digest, digest, digest, parsed, config, documents)
    return _FoundNamed(found, entry.names)


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _suffix(file: SpooledFile) -> str:
    with file.path.open("rb") as layer:
        start = layer.read(4)
    if start.startswith(GZIP_MAGIC):
        return "+gzip"
    return "+zstd" if start == ZSTD_MAGIC else ""
