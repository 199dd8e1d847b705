"""Push: what a name stands for, as it is stored, to a repository of its registry.

Blobs first, several at a time, the largest first; then manifests, then what points to them; the tag
last, so that it never names something incomplete. What the registry has is not sent again; what
another of its repositories has is mounted from there. Bytes are sent as they are stored, of
whatever media type; only an image's uncompressed layers are compressed on the way (`zipped.py`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wherry.errors import ContentMismatch, ImageNotFound, StorageError
from wherry.images.attempts import Stopped
from wherry.images.documents import Document, distinct, parse_document
from wherry.images.media import Descriptor, MediaError
from wherry.images.parallel import for_each
from wherry.images.parts import Parts
from wherry.images.progress import Reporter
from wherry.images.reference import Reference
from wherry.images.referrers import note_subject
from wherry.images.refetch import Refetcher
from wherry.images.registry import MAX_MANIFEST_BYTES, RegistryClient
from wherry.images.remotes import Remotes
from wherry.images.upload import PIECE_BYTES, BlobPushed, Outcome, RegistryWriter
from wherry.images.zipped import LEASE_SECONDS, with_compressed_layers

PARALLEL_UPLOADS = 5
"""Blobs on their way at a time; Docker's max-concurrent-uploads."""

_MAX_NESTING = 3


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a tag names now. `size`: bytes of the manifest or index."""

    tag: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class PushPlan:
    """What has to be in a repository.

    Attributes:
        documents: manifests before what points to them; the last is what the tag will name.
        blobs: what they consist of, each once.
        hidden: digests of blobs that are no layers (configs): not worth a line of progress.
    """

    documents: tuple[Document, ...]
    blobs: tuple[Descriptor, ...]
    hidden: frozenset[str]


def push_image(
    parts: Parts,
    client: RegistryClient,
    image_id: str,
    target: Reference,
    reporter: Reporter,
    refetcher: Refetcher,
    *,
    index: str | None = None,
) -> Pushed:
    """Push one image, or the whole index that it came from.

    Args:
        target: repository and tag.
        refetcher: gets blobs that are not stored (`image prune --blobs`) and the registry lacks.
        index: the index's digest; everything that it points to must be stored.

    Raises:
        RegistryError, Unauthorized: the registry does not take it.
        StorageError: a blob that the registry lacks is not stored, and not to be had again.
    """
    row = parts.db.image(image_id)
    if row is None:
        raise ImageNotFound(f"No such image: {target.familiar}")
    remotes = Remotes(parts.db)
    holder = f"push:{secrets.token_hex(8)}"
    objects = parts.db.rows("SELECT object FROM image_objects WHERE image_id = ?", image_id)
    parts.db.lease(holder, [str(it[0]) for it in objects], LEASE_SECONDS)
    try:
        reporter.say(f"The push refers to repository [{target.name}]")
        root = _read(parts, index or row.manifest_digest)
        if index is None:
            root = with_compressed_layers(parts, remotes, root, holder, reporter.stop)
            parts.db.lease(holder, [root.digest], LEASE_SECONDS)
            parts.layout.write(root.body)
        plan = plan_push(parts, root)

        def again(blob: Descriptor) -> None:
            refetcher.blob(blob.digest, blob.size, image_id, reporter)

        _Push(parts, remotes, client, target, reporter, again).run(plan)
        blobs = [blob.digest for blob in plan.blobs]
        remotes.note_pushed(image_id, target.name, root.digest, [root.digest, *blobs])
        remotes.note_sources(target.name, blobs)
    finally:
        parts.db.release(holder)
        parts.settle()
    tag = target.tag or ""
    reporter.say(f"{tag}: digest: {root.digest} size: {len(root.body)}")
    return Pushed(tag, root.digest, len(root.body))


def plan_push(parts: Parts, root: Document) -> PushPlan:
    """Everything that has to be in the repository before the tag can name `root`.

    Raises:
        StorageError: a manifest is missing or damaged.
    """
    documents: dict[str, Document] = {}
    blobs: list[Descriptor] = []

    def visit(document: Document, depth: int) -> None:
        if depth > _MAX_NESTING:
            raise StorageError(f"index {root.digest} is nested too deeply")
        for child in document.children:
            if child.digest not in documents:
                visit(_read(parts, child.digest, child.media_type), depth + 1)
        blobs.extend(document.blobs)
        documents[document.digest] = document

    visit(root, 0)
    configs = {it.blobs[0].digest for it in documents.values() if it.blobs}
    layers = {blob.digest for it in documents.values() for blob in it.blobs[1:]}
    return PushPlan(tuple(documents.values()), tuple(distinct(blobs)), frozenset(configs - layers))


def index_of(parts: Parts, image_id: str, name: str | None) -> str | None:
    """The index that an image came from, as its name says, else the latest that it was known by.

    Args:
        name: the full tag that was given, if it was one.
    """
    log = parts.db.tag_log(name) if name else []
    candidates = [log[0].digest] if log and log[0].digest else []
    for digest in [*candidates, *Remotes(parts.db).digests_of(image_id)]:
        body = parts.layout.cached(digest, MAX_MANIFEST_BYTES)
        if body is not None and parse_document(body).is_index:
            return digest
    return None


def missing_of(parts: Parts, index: str) -> list[str]:
    """What an index points to, directly or not, and is not stored: platforms or digests."""
    missing: list[str] = []

    def visit(digest: str, name: str) -> None:
        body = parts.layout.cached(digest, MAX_MANIFEST_BYTES)
        document = parse_document(body) if body is not None else None
        if document is None or not all(
            parts.layout.has(it.digest, it.size) for it in document.blobs
        ):
            missing.append(name)
            return
        for child in document.children:
            platform = child.platform.normalised() if child.platform else None
            visit(child.digest, str(platform or child.digest))

    visit(index, index)
    return missing


def _read(parts: Parts, digest: str, media_type: str = "") -> Document:
    try:
        return parse_document(parts.layout.read(digest), media_type)
    except MediaError as error:
        raise StorageError(f"blob {digest} in the store is no manifest: {error}") from error


class _Push:
    """One push, from plan to tag."""

    def __init__(
        self,
        parts: Parts,
        remotes: Remotes,
        client: RegistryClient,
        target: Reference,
        reporter: Reporter,
        again: Callable[[Descriptor], None],
    ) -> None:
        self._parts = parts
        self._remotes = remotes
        self._client = client
        self._writer = RegistryWriter(client)
        self._target = target
        self._reporter = reporter
        self._again = again

    def run(self, plan: PushPlan) -> None:
        shown = [blob for blob in plan.blobs if blob.digest not in plan.hidden]
        for number, blob in enumerate(shown):
            status = "Preparing" if number < PARALLEL_UPLOADS else "Waiting"
            self._reporter.layer(blob.digest, status)
        self._blobs(plan)
        path, tag = self._target.path, self._target.tag or ""
        for document in plan.documents:
            last = document is plan.documents[-1]
            reference = tag if last and tag else document.digest
            has_referrers = self._writer.put_manifest(
                path, reference, document.media_type, document.body
            )
            if document.subject is not None and not has_referrers:
                note_subject(self._client, self._writer, path, document)

    def _blobs(self, plan: PushPlan) -> None:
        longest_first = sorted(plan.blobs, key=lambda blob: -blob.size)
        for_each(
            longest_first,
            lambda blob: self._blob(blob, blob.digest not in plan.hidden),
            at_once=PARALLEL_UPLOADS,
            name="push",
            reporter=self._reporter,
        )

    def _blob(self, blob: Descriptor, shown: bool) -> None:
        if self._reporter.stop.is_set():
            raise Stopped

        def sent(count: int) -> None:
            if shown:
                self._reporter.layer(blob.digest, "Pushing", count, blob.size)

        sources = self._remotes.sources(blob.digest, self._target.domain)
        pushed = self._writer.put_blob(
            self._target.path,
            blob,
            lambda start, end: self._content(blob, start, end),
            [source for source in sources if source != self._target.path],
            sent,
        )
        if shown:
            self._reporter.layer(blob.digest, _words(pushed))

    def _content(self, blob: Descriptor, start: int, end: int) -> Iterator[bytes]:
        path = self._parts.layout.blob_path(blob.digest)
        if not path.exists():
            self._again(blob)
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while start < end:
                piece = file.read(min(PIECE_BYTES, end - start))
                if not piece:
                    raise ContentMismatch(f"{path} is shorter than its {blob.size} bytes")
                start += len(piece)
                yield piece


def _words(pushed: BlobPushed) -> str:
    if pushed.outcome is Outcome.MOUNTED:
        return f"Mounted from {pushed.source}"
    return "Pushed" if pushed.outcome is Outcome.UPLOADED else "Layer already exists"
