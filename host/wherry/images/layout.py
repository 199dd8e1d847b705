"""An OCI image layout on disk: blobs, and an `index.json` that other tools read.

OCI image-spec 1.1, image-layout.md. A blob appears by renaming a synced file, so it is there whole
or not at all; several processes may share the directory. What is stored is decided by `store_db`:
`index.json` is only an export of its tags (`skopeo inspect oci:DIRECTORY:debian:13`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from wherry.errors import ContentMismatch, StorageError
from wherry.images.ingest import Ingest, move_into_place, remove_file
from wherry.images.media import CONTAINERD_NAME, OCI_INDEX, OCI_MANIFEST, REF_NAME, digest_of
from wherry.images.reference import is_digest
from wherry.osutil import atomic_write, private_directory, sync_descriptor

LAYOUT_FILE = "oci-layout"
LAYOUT_CONTENT = b'{"imageLayoutVersion":"1.0.0"}'
INDEX_FILE = "index.json"
ORIGINAL_MANIFEST = "wherry.manifest"
"""Annotation: the digest of the schema 2 manifest that this OCI one says the same as."""
KNOWN_AS = "wherry.digests"
"""Annotation: `repository@digest` of where it was pulled from, with spaces between."""


@dataclass(frozen=True, slots=True)
class Exported:
    """An entry of `index.json`.

    Attributes:
        name: as people write it (`debian:13`), what other tools ask for; "" for one without.
        full_name: `docker.io/library/debian:13`.
        digest, size: of an OCI manifest.
        platform: os, architecture and, unless "", variant.
        manifest: digest of the manifest as it came.
        known_as: `docker.io/library/debian@sha256:…`, where it was pulled from.
    """

    name: str
    full_name: str
    digest: str
    size: int
    platform: tuple[str, str, str]
    manifest: str
    known_as: tuple[str, ...]


class BlobFile:
    """A blob being written; `commit` makes it part of the layout. From `Layout.new_blob`."""

    def __init__(self, path: Path, target: Path, digest: str, *, mode: str = "xb") -> None:
        self.path = path
        self._target = target
        self._digest = digest
        self._hash = hashlib.sha256()
        self._file = cast(BinaryIO, path.open(mode))
        self.size = 0

    def write(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self._file.write(chunk)
        self.size += len(chunk)

    def check(self, whose: str) -> None:
        """Compare with the digest that was promised.

        Raises:
            ContentMismatch: it is another; the message begins with `whose`.
        """
        self._file.flush()
        found = f"sha256:{self._hash.hexdigest()}"
        if found != self._digest:
            raise ContentMismatch(f"{whose}: its content has the digest {found}")

    def commit(self) -> None:
        self._file.flush()
        sync_descriptor(self._file.fileno())
        self._file.close()
        move_into_place(self.path, self._target)

    def close(self) -> None:
        self._file.close()


class Layout:
    """The layout at `root`; unfinished blobs are in `ingest`'s directory."""

    def __init__(self, root: Path, ingest: Ingest) -> None:
        self.root = private_directory(root)
        self._blobs = private_directory(root / "blobs" / "sha256")
        self._ingest = ingest
        if not (root / LAYOUT_FILE).exists():
            atomic_write(root / LAYOUT_FILE, LAYOUT_CONTENT)

    def blob_path(self, digest: str) -> Path:
        return self._blobs / digest.removeprefix("sha256:")

    def has(self, digest: str, size: int) -> bool:
        """Whether the blob is there, with that many bytes (what it holds was checked before)."""
        try:
            return self.blob_path(digest).stat().st_size == size
        except FileNotFoundError:
            return False

    def read(self, digest: str) -> bytes:
        """A small blob (manifest, config), checked.

        Raises:
            StorageError: it is missing or damaged.
        """
        try:
            data = self.blob_path(digest).read_bytes()
        except FileNotFoundError:
            raise StorageError(
                f"blob {digest} is missing from {self.root}", hint="pull the image again"
            ) from None
        if digest_of(data) != digest:
            raise StorageError(
                f"blob {digest} in {self.root} is damaged",
                hint="remove the image and pull it again",
            )
        return data

    def cached(self, digest: str, limit: int) -> bytes | None:
        """A small blob if it is there and whole, else None."""
        path = self.blob_path(digest)
        try:
            data = path.read_bytes() if path.stat().st_size <= limit else b""
        except FileNotFoundError:
            return None
        return data if digest_of(data) == digest else None

    def write(self, data: bytes) -> str:
        """Store a small blob; its digest."""
        digest = digest_of(data)
        if self.cached(digest, len(data)) is None:
            with self.new_blob(digest) as blob:
                blob.write(data)
                blob.commit()
        return digest

    def replace(self, data: bytes) -> None:
        """Store a small blob, whatever stands in its place."""
        with self.new_blob(digest_of(data)) as blob:
            blob.write(data)
            blob.commit()

    @contextmanager
    def new_blob(self, digest: str) -> Iterator[BlobFile]:
        """A blob to write; gone at the end unless committed."""
        with self._ingest.new_file(digest, "blob") as path:
            blob = BlobFile(path, self.blob_path(digest), digest)
            try:
                yield blob
            finally:
                blob.close()

    def digests(self) -> Iterator[str]:
        """Of all blobs that there are; other tools' files are not ours to see."""
        for path in self._blobs.iterdir():
            if is_digest(digest := f"sha256:{path.name}"):
                yield digest

    def stored_bytes(self, digest: str) -> int:
        """A blob's size on disk; 0 when it is not there."""
        try:
            return self.blob_path(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def remove(self, digest: str) -> bool:
        """Remove a blob; False when it has to stay for now."""
        return remove_file(self.blob_path(digest))

    def export_index(self, entries: Iterable[Exported]) -> None:
        """Replace `index.json`."""
        index = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [_index_entry(entry) for entry in entries],
        }
        atomic_write(self.root / INDEX_FILE, msgspec.json.encode(index))


def _index_entry(entry: Exported) -> dict[str, object]:
    operating_system, architecture, variant = entry.platform
    platform = {"architecture": architecture, "os": operating_system}
    annotations = {REF_NAME: entry.name, CONTAINERD_NAME: entry.full_name} if entry.name else {}
    if entry.manifest != entry.digest:
        annotations[ORIGINAL_MANIFEST] = entry.manifest
    if entry.known_as:
        annotations[KNOWN_AS] = " ".join(entry.known_as)
    return {
        "mediaType": OCI_MANIFEST,
        "digest": entry.digest,
        "size": entry.size,
        "platform": platform | ({"variant": variant} if variant else {}),
        **({"annotations": annotations} if annotations else {}),
    }
