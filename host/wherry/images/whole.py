"""Everything that an index points to: all platforms of an image, and what else there is.

Blobs of the other platforms are kept as they come, not unpacked; they belong to the image that the
name stands for, and go with it. Of what is not understood only digests and sizes are checked.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from wherry.errors import ContentMismatch, RegistryError
from wherry.images.attempts import Stopped
from wherry.images.documents import distinct, parse_document
from wherry.images.layers import PARALLEL_LAYERS, Source
from wherry.images.media import Descriptor, MediaError
from wherry.images.parallel import for_each
from wherry.images.partial import StalePartial, may_fetch_elsewhere, partial_blob, rest_of
from wherry.images.parts import Parts
from wherry.images.progress import Reporter
from wherry.images.pull import FoundImage, ImageSource
from wherry.images.registry import MAX_MANIFEST_BYTES
from wherry.images.remotes import Remotes

_LEASE_SECONDS = 24 * 3600.0
_MAX_NESTING = 3
_MAX_DOCUMENTS = 1000


@dataclass(frozen=True, slots=True)
class Whole:
    """What is to be stored.

    Attributes:
        documents: indexes and manifests, by digest.
        blobs: what the manifests consist of, each once.
    """

    documents: dict[str, bytes]
    blobs: list[Descriptor]


def find_whole(parts: Parts, found: FoundImage, source: ImageSource) -> Whole:
    """Read all manifests below what a name stands for.

    Raises:
        RegistryError, ContentMismatch: what the source sent cannot be used.
    """
    documents: dict[str, bytes] = {}
    blobs: list[Descriptor] = []

    def visit(digest: str, size: int | None, media_type: str, depth: int) -> None:
        if digest in documents:
            return
        if depth > _MAX_NESTING or len(documents) >= _MAX_DOCUMENTS:
            raise RegistryError(f"{source.name}: its index has too many or too deep manifests")
        known = found.documents.get(digest) or parts.layout.cached(digest, MAX_MANIFEST_BYTES)
        body = known if known is not None else source.manifest(digest).body
        if size is not None and len(body) != size:
            raise ContentMismatch(
                f"{source.name}: its index says that {digest} has {size} bytes, it has {len(body)}"
            )
        try:
            document = parse_document(body, media_type)
        except MediaError as error:
            raise RegistryError(f"{source.name}, {digest}: {error}") from error
        documents[digest] = body
        blobs.extend(document.blobs)
        for child in document.children:
            visit(child.digest, child.size, child.media_type, depth + 1)

    visit(found.target_digest, None, "", 0)
    return Whole(documents, distinct(blobs))


def take_whole(
    parts: Parts, whole: Whole, found: FoundImage, source: Source, reporter: Reporter
) -> None:
    """Store the blobs that are missing, and let them belong to an image that is stored."""
    holder = f"pull:{found.target_digest}:{secrets.token_hex(4)}"
    objects = [*whole.documents, *(blob.digest for blob in whole.blobs)]
    parts.db.lease(holder, objects, _LEASE_SECONDS)
    try:
        missing = [it for it in whole.blobs if not parts.layout.has(it.digest, it.size)]
        parts.check_space(sum(blob.size for blob in missing), "the other platforms")
        _fetch(parts, missing, source, reporter)
        for body in whole.documents.values():
            parts.layout.write(body)
        Remotes(parts.db).keep(found.id, objects)
    finally:
        parts.db.release(holder)


def _fetch(parts: Parts, missing: list[Descriptor], source: Source, reporter: Reporter) -> None:
    for blob in missing:
        reporter.layer(blob.digest, "Pulling fs layer")
    for_each(
        sorted(missing, key=lambda blob: -blob.size),
        lambda blob: _fetch_one(parts, blob, source, reporter),
        at_once=PARALLEL_LAYERS,
        name="blob",
        reporter=reporter,
    )


def _fetch_one(parts: Parts, blob: Descriptor, source: Source, reporter: Reporter) -> None:
    with parts.ingest.working_on(blob.digest, stop=reporter.stop):
        while not parts.layout.has(blob.digest, blob.size):
            try:
                _download(parts, blob, source, reporter)
            except StalePartial:
                continue  # the fault may be in what an earlier download left: that is gone now
            except ContentMismatch:
                if not may_fetch_elsewhere(source, blob):
                    raise
        reporter.layer(blob.digest, "Pull complete")


def _download(parts: Parts, blob: Descriptor, source: Source, reporter: Reporter) -> None:
    with partial_blob(parts.ingest, parts.layout, blob.digest) as target:
        for _ in target.replay(blob.size):
            pass
        for chunk in rest_of(source, blob, target.size, source.blob(blob)):
            if reporter.stop.is_set():
                raise Stopped
            target.write(chunk)
            reporter.layer(blob.digest, "Downloading", target.size, blob.size)
        target.check(source.describe(blob))
        target.commit()
