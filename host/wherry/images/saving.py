"""`save`: images of the store as one tar, which Docker, podman, skopeo and `load` read.

The archive is an OCI image layout; as Docker 25 writes it, with a `manifest.json` in it, so that
readers of either form find theirs. Blobs go out as they are stored, so saving costs what copying
costs; times and owners in the tar are 0, so the same images make the same bytes.
"""

from __future__ import annotations

import secrets
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from wherry.errors import ImageNotFound, InvalidInput, StorageError
from wherry.images.layout import INDEX_FILE, LAYOUT_CONTENT, LAYOUT_FILE
from wherry.images.media import CONTAINERD_NAME, OCI_INDEX, OCI_MANIFEST, REF_NAME
from wherry.images.parts import Parts, objects_of
from wherry.images.reference import parse_reference
from wherry.images.store_db import ImageRow, LayerRow

DOCKER_ARCHIVE = "docker-archive"
OCI_ARCHIVE = "oci-archive"
FORMATS = (DOCKER_ARCHIVE, OCI_ARCHIVE)

SAVE_LEASE_SECONDS = 24 * 3600.0
"""The longest that a save may take, with its reader's pauses."""
PIECE_BYTES = 1 << 20
_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)

Fetch = Callable[[Sequence[LayerRow], str], None]
"""Makes sure that the blobs of these layers, of that image, are there."""


@dataclass(frozen=True, slots=True)
class _Chosen:
    """An image to save, and the full names under which it goes."""

    row: ImageRow
    layers: tuple[LayerRow, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of the archive: its contents, or the blob that has them."""

    name: str
    size: int
    data: bytes = b""
    blob: str = ""


@dataclass(frozen=True, slots=True)
class BlobPart:
    """A part of an archive that is a whole file."""

    path: Path
    size: int


class SavedArchive:
    """An archive to be read once. `size`: of all of it, in bytes.

    What it needs is kept until it was read, or closed.
    """

    def __init__(self, parts: Parts, members: Sequence[_Member], holder: str) -> None:
        self._parts = parts
        self._members = members
        self._holder = holder
        self.size = sum(_BLOCK + _padded(it.size) for it in members) + len(_END)

    def pieces(self) -> Iterator[bytes]:
        """The bytes. Raises StorageError when a blob is missing or has another size."""
        try:
            for part in self.parts():
                if isinstance(part, BlobPart):
                    yield from _contents(part)
                else:
                    yield part
        finally:
            self.close()

    def parts(self) -> Iterator[bytes | BlobPart]:
        """The same, with files in the place of what is in them."""
        data = b""
        for member in self._members:
            data += _header(member)
            if member.blob:
                yield data
                yield BlobPart(self._parts.layout.blob_path(member.blob), member.size)
                data = b""
            else:
                data += member.data
            data += bytes(_padded(member.size) - member.size)
        yield data + _END

    def close(self) -> None:
        self._parts.db.release(self._holder)
        self._parts.settle()


def save(parts: Parts, refs: Sequence[str], form: str, fetch: Fetch) -> SavedArchive:
    """Plan an archive of images.

    Args:
        refs: names, `name@digest` or ids; a repository without a tag means all of its tags.
        form: of `FORMATS`.
        fetch: gets layers whose blobs were given up.

    Raises:
        ImageNotFound, InvalidReference, InvalidInput; StorageError: a blob is missing.
    """
    if form not in FORMATS:
        raise InvalidInput(f"{form!r} is no archive format", hint=f"one of {', '.join(FORMATS)}")
    holder = f"save:{secrets.token_hex(8)}"
    images = _choose(parts, refs)
    try:
        for image in images:
            documents = (image.row.id, image.row.export_digest)
            parts.db.lease(holder, objects_of(image.layers, documents), SAVE_LEASE_SECONDS)
            if missing := [it for it in image.layers if not _has(parts, it)]:
                fetch(missing, image.row.id)
        return SavedArchive(parts, _members(parts, images, form), holder)
    except BaseException:
        parts.db.release(holder)
        parts.settle()
        raise


def _has(parts: Parts, layer: LayerRow) -> bool:
    return parts.layout.has(layer.blob, layer.blob_size)


def _choose(parts: Parts, refs: Sequence[str]) -> list[_Chosen]:
    names: dict[str, list[str]] = {}
    for ref in refs:
        image_id, called = _named(parts, ref)
        for one_id, name in [(image_id, "")] if called is None else called:
            known = names.setdefault(one_id, [])
            if name and name not in known:
                known.append(name)
    chosen = []
    for image_id, called_so in names.items():
        row = parts.db.image(image_id)
        if row is None:
            raise ImageNotFound(f"No such image: {image_id}")
        chosen.append(_Chosen(row, tuple(parts.db.layers_of(image_id)), tuple(called_so)))
    return chosen


def _named(parts: Parts, ref: str) -> tuple[str, list[tuple[str, str]] | None]:
    """(id, None) for what is given by id or digest, else ("", (id, full tag) pairs)."""
    reference = parts.finder.named(ref)
    if reference is None:
        whole = parts.finder.repository(ref)
        if whole:
            return "", whole
        return parts.finder.find(ref), None
    image_id = parts.finder.find(ref)
    if reference.digest is not None:
        return image_id, None
    if parse_reference(ref).tag is None:
        return "", parts.finder.repository(ref)
    return "", [(image_id, str(reference))]


def _members(parts: Parts, images: Sequence[_Chosen], form: str) -> list[_Member]:
    members = [
        _document(LAYOUT_FILE, LAYOUT_CONTENT),
        _document(INDEX_FILE, msgspec.json.encode(_index(images))),
    ]
    if form == DOCKER_ARCHIVE:
        manifest = msgspec.json.encode([_docker_manifest(image) for image in images])
        members.append(_document("manifest.json", manifest))
    blobs: dict[str, int] = {}
    for image in images:
        row = image.row
        blobs[row.export_digest] = row.export_size
        blobs[row.id] = len(row.raw_config)
    for image in images:
        blobs |= {layer.blob: layer.blob_size for layer in image.layers}
    for digest, size in blobs.items():
        if not parts.layout.has(digest, size):
            raise StorageError(f"blob {digest} is missing", hint="wherry image verify --repair")
        members.append(_Member(_blob_name(digest), size, blob=digest))
    return members


def _index(images: Sequence[_Chosen]) -> dict[str, Any]:
    entries: list[dict[str, Any]] = []
    for image in images:
        row = image.row
        platform = {"architecture": row.architecture, "os": row.os}
        if row.variant:
            platform["variant"] = row.variant
        entry = {
            "mediaType": OCI_MANIFEST,
            "digest": row.export_digest,
            "size": row.export_size,
            "platform": platform,
        }
        for name in image.names or ("",):
            notes = (
                {REF_NAME: parse_reference(name).familiar, CONTAINERD_NAME: name} if name else {}
            )
            entries.append(entry | ({"annotations": notes} if notes else {}))
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}


def _docker_manifest(image: _Chosen) -> dict[str, Any]:
    return {
        "Config": _blob_name(image.row.id),
        "RepoTags": [parse_reference(name).familiar for name in image.names] or None,
        "Layers": [_blob_name(layer.blob) for layer in image.layers],
    }


def _blob_name(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _document(name: str, data: bytes) -> _Member:
    return _Member(name, len(data), data)


def _header(member: _Member) -> bytes:
    info = tarfile.TarInfo(member.name)
    info.size = member.size
    info.mode = 0o644
    return info.tobuf(tarfile.GNU_FORMAT)  # base 256 for sizes from 8 GiB on


def _contents(part: BlobPart) -> Iterator[bytes]:
    left = part.size
    try:
        with part.path.open("rb", buffering=0) as file:
            while left and (piece := file.read(min(left, PIECE_BYTES))):
                left -= len(piece)
                yield piece
    except OSError as error:
        raise StorageError(f"{part.path} cannot be read: {error.strerror}") from error
    if left:
        raise StorageError(f"{part.path} is shorter than it was")


def _padded(size: int) -> int:
    return size + -size % _BLOCK
