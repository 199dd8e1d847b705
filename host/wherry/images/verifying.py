"""`image verify`: is everything that is stored what it should be, and can it be mended?

A blob's name is its digest, so hashing it is the proof. An EROFS file has no digest of its own:
`write_erofs` makes the same bytes of a layer each time, so the layer is converted again (that
proves its diffID too) and the files are compared. A pull has nothing to write down for that, and
the mended file is there already. Of a layer whose blob was given up only the structure is checked.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wherry.errors import ContentMismatch, InvalidInput, StorageError, WherryError
from wherry.images.convert import (
    OWN_PROCESS_BYTES,
    ConvertedLayer,
    Converter,
    convert,
    read_chunks,
)
from wherry.images.erofs import layer_uuid
from wherry.images.erofs.reader import ErofsImage
from wherry.images.layers import EROFS_OBJECT
from wherry.images.media import as_oci
from wherry.images.merged import read_layer
from wherry.images.parts import Parts
from wherry.images.progress import Reporter
from wherry.images.reference import parse_reference
from wherry.images.refetch import Refetcher
from wherry.images.store_db import ImageRow, LayerRow

LEASE_SECONDS = 24 * 3600.0
_COMPARE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not what it should be.

    Attributes:
        kind: blob (compressed layer), layer (EROFS file), config or manifest.
        digest: the blob's; a layer's diffID.
        images: names of images that need it, or their ids; none: no image does.
        problem: in words.
        repaired: it is mended. failure: why it could not be, when that was tried.
    """

    kind: str
    digest: str
    images: tuple[str, ...]
    problem: str
    repaired: bool = False
    failure: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "digest": self.digest,
            "images": list(self.images),
            "problem": self.problem,
            "repaired": self.repaired,
            "failure": self.failure,
        }


@dataclass(frozen=True, slots=True)
class Verified:
    """Blobs and layers that were looked at, their bytes, and what is wrong."""

    checked: int
    bytes: int
    damages: tuple[Damage, ...]

    def as_json(self) -> dict[str, Any]:
        damages = [damage.as_json() for damage in self.damages]
        return {"checked": self.checked, "bytes": self.bytes, "damages": damages}


def verify(
    parts: Parts,
    refetcher: Refetcher,
    image_ids: Sequence[str] | None,
    reporter: Reporter,
    *,
    repair: bool,
) -> Verified:
    """Check images, or everything there is (None).

    Args:
        repair: fetch damaged blobs again, write damaged layers again.
        reporter: told of every blob and layer.
    """
    verifier = _Verifier(parts, refetcher, reporter, repair)
    holder = f"verify:{secrets.token_hex(8)}"
    try:
        rows = [row for row in parts.db.images() if image_ids is None or row.id in image_ids]
        for row in rows:
            parts.db.lease(holder, parts.db.objects_of(row.id), LEASE_SECONDS)
        alive = [row for row in rows if parts.db.image(row.id) is not None]
        verifier.images(alive)
        if image_ids is None:
            verifier.others()
    finally:
        parts.db.release(holder)
        parts.settle()
    return Verified(verifier.checked, verifier.bytes, tuple(verifier.damages))


class _Verifier:
    def __init__(
        self, parts: Parts, refetcher: Refetcher, reporter: Reporter, repair: bool
    ) -> None:
        self._parts = parts
        self._refetcher = refetcher
        self._reporter = reporter
        self._repair = repair
        self._seen: set[str] = set()
        self.checked = 0
        self.bytes = 0
        self.damages: list[Damage] = []

    def images(self, rows: Sequence[ImageRow]) -> None:
        users: dict[str, list[ImageRow]] = {}
        layers: dict[tuple[str, str], LayerRow] = {}
        for row in rows:
            for layer in self._parts.db.layers_of(row.id):
                layers[layer.diff_id, layer.blob] = layer
                users.setdefault(layer.blob, []).append(row)
        for row in rows:
            for name in self._parts.db.objects_of(row.id):
                if not name.startswith(EROFS_OBJECT) and name not in users:
                    self._document(name, row)
        for layer in layers.values():
            self._layer(layer, users[layer.blob])

    def others(self) -> None:
        """Blobs that no image names: they are leased, or garbage."""
        for digest in list(self._parts.layout.digests()):
            problem = None if digest in self._seen else self._hash_problem(digest, None)
            if problem and self._parts.layout.stored_bytes(digest):  # still there
                self.damages.append(Damage("blob", digest, (), problem))

    # Configs, manifests, indexes.

    def _document(self, digest: str, row: ImageRow) -> None:
        if digest in self._seen:
            return
        size = len(row.raw_config) if digest == row.id else None
        problem = self._hash_problem(digest, size)
        if problem is None:
            return
        kind = "config" if digest == row.id else "manifest"
        self._note(kind, digest, [row], problem, lambda: self._mend_document(digest, row))

    def _mend_document(self, digest: str, row: ImageRow) -> None:
        layout = self._parts.layout
        if digest == row.id:
            layout.replace(row.raw_config)
        elif digest == row.export_digest and digest != row.manifest_digest:
            layout.replace(as_oci(layout.read(row.manifest_digest)))
        else:
            self._refetcher.manifest(digest, row.id, self._reporter)

    # Layers.

    def _layer(self, layer: LayerRow, users: Sequence[ImageRow]) -> None:
        self._seen.add(layer.blob)
        with self._parts.ingest.working_on(layer.blob):
            has_blob = self._parts.layout.stored_bytes(layer.blob) > 0
            if not has_blob and self._parts.db.is_dropped(layer.blob):
                self._structure(layer, users)
                return
            problem = self._blob_and_erofs(layer, users)
            if problem is None:
                return
        # Outside of the lock: fetching takes it.
        if self._note("blob", layer.blob, users, problem, lambda: self._mend_blob(layer, users)):
            with self._parts.ingest.working_on(layer.blob):
                self._blob_and_erofs(layer, users)

    def _blob_and_erofs(self, layer: LayerRow, users: Sequence[ImageRow]) -> str | None:
        """What is wrong with the blob. When nothing is, its EROFS file is compared, and noted."""
        parts = self._parts
        size = parts.layout.stored_bytes(layer.blob)
        if size != layer.blob_size:
            self.checked += 1
            return f"it has {size} bytes, not {layer.blob_size}" if size else "it is missing"
        with parts.ingest.new_file(layer.blob, "erofs") as target:
            try:
                digest, done = self._convert(layer, target)
            except WherryError as error:
                return error.message
            self._count(layer.blob, size)
            if digest != layer.blob:
                return f"its content has the digest {digest}"
            path = parts.layers.path(layer.diff_id)
            problem = _difference(path, target)
            self._count(layer.diff_id, done.size)
            if problem is not None:
                self._note(
                    "layer",
                    layer.diff_id,
                    users,
                    problem,
                    lambda: parts.layers.replace(target, done),
                )
        return None

    def _convert(self, layer: LayerRow, target: Path) -> tuple[str, ConvertedLayer]:
        """The blob's digest, and the layer written anew. Raises ContentMismatch, LayerError."""
        content = hashlib.sha256()
        limit = self._parts.limits.layer_bytes
        with self._parts.layout.blob_path(layer.blob).open("rb") as blob:
            chunks = self._hashed(read_chunks(blob), content, layer)
            try:
                if layer.blob_size < OWN_PROCESS_BYTES:
                    done = convert(chunks, target, layer.diff_id, limit)
                else:
                    with Converter(target, layer.diff_id, limit) as converter:
                        for chunk in chunks:
                            converter.write(chunk)
                        done = converter.finish()
            except (InvalidInput, ContentMismatch) as error:
                for _ in chunks:  # so that the digest is known
                    pass
                digest = f"sha256:{content.hexdigest()}"
                if digest == layer.blob:
                    raise
                message = f"its content has the digest {digest}: {error.message}"
                raise ContentMismatch(message) from error
        return f"sha256:{content.hexdigest()}", done

    def _hashed(
        self, chunks: Iterator[bytes], content: hashlib._Hash, layer: LayerRow
    ) -> Iterator[bytes]:
        done = 0
        for chunk in chunks:
            content.update(chunk)
            done += len(chunk)
            self._reporter.layer(layer.blob, "Verifying", done, layer.blob_size)
            yield chunk

    def _structure(self, layer: LayerRow, users: Sequence[ImageRow]) -> None:
        path = self._parts.layers.path(layer.diff_id)
        try:
            with path.open("rb") as file:
                image = ErofsImage(file, path.name)
                if image.uuid != layer_uuid(layer.diff_id).bytes:
                    raise StorageError("it is another layer's")
                read_layer(image, 0)
        except FileNotFoundError:
            problem = "it is missing"
        except WherryError as error:
            problem = error.message
        else:
            if self._parts.layers.find(layer.diff_id) is not None:
                self._count(layer.diff_id, image.size)
                return
            problem = "it is not as long as it was"
        self._note("layer", layer.diff_id, users, problem, lambda: self._remake(layer, users))

    def _remake(self, layer: LayerRow, users: Sequence[ImageRow]) -> None:
        """Fetch the blob of a layer and write its EROFS file again."""
        self._refetcher.blob(layer.blob, layer.blob_size, users[0].id, self._reporter)
        with self._parts.ingest.new_file(layer.blob, "erofs") as target:
            _, done = self._convert(layer, target)
            self._parts.layers.replace(target, done)

    def _mend_blob(self, layer: LayerRow, users: Sequence[ImageRow]) -> None:
        self._refetcher.blob(layer.blob, layer.blob_size, users[0].id, self._reporter)

    # Noting.

    def _hash_problem(self, digest: str, size: int | None) -> str | None:
        self._seen.add(digest)
        content = hashlib.sha256()
        found = 0
        try:
            with self._parts.layout.blob_path(digest).open("rb") as file:
                for chunk in read_chunks(file):
                    content.update(chunk)
                    found += len(chunk)
        except FileNotFoundError:
            self.checked += 1
            return "it is missing"
        self._count(digest, found)
        if size is not None and size != found:
            return f"it has {found} bytes, not {size}"
        now = f"sha256:{content.hexdigest()}"
        return None if now == digest else f"its content has the digest {now}"

    def _count(self, digest: str, size: int) -> None:
        self.checked += 1
        self.bytes += size
        self._reporter.layer(digest, "Verified", size, size)

    def _note(
        self,
        kind: str,
        digest: str,
        users: Sequence[ImageRow],
        problem: str,
        mend: Callable[[], object],
    ) -> bool:
        """Note a damage; mend it when that is wanted. True when it is mended."""
        names = tuple(name for row in users for name in self._names_of(row))
        repaired, failure = False, ""
        if self._repair:
            try:
                mend()
                repaired = True
            except WherryError as error:
                failure = error.message
        self._reporter.layer(digest, "Repaired" if repaired else "Damaged")
        self.damages.append(Damage(kind, digest, names, problem, repaired, failure))
        return repaired

    def _names_of(self, row: ImageRow) -> list[str]:
        tags, _ = self._parts.db.names_of(row.id)
        return [parse_reference(tag).familiar for tag in tags] or [row.id]


def _difference(path: Path, good: Path) -> str | None:
    """In words, or None when both files have the same bytes."""
    try:
        sizes = path.stat().st_size, good.stat().st_size
        if sizes[0] != sizes[1]:
            return f"it has {sizes[0]} bytes, not {sizes[1]}"
        with path.open("rb") as one, good.open("rb") as other:
            at = 0
            while data := other.read(_COMPARE_BYTES):
                if one.read(len(data)) != data:
                    return f"it differs from its source between bytes {at} and {at + len(data)}"
                at += len(data)
    except FileNotFoundError:
        return "it is missing"
    return None
