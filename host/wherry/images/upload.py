"""Writing to a registry: blobs looked for, mounted or uploaded; manifests put.

OCI distribution-spec 1.1, "Push". A blob goes up in one request when it is small, else as one long
PATCH (in smaller ones where the registry wants that) and a PUT that names its digest. After a break
the registry is asked how far it came, and the upload goes on there; when it does not know, from the
beginning. Whether the bytes are right is checked by the registry, by the digest.
"""

from __future__ import annotations

import enum
import re
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import urllib3

from wherry.errors import ContentMismatch, RegistryError, WherryError
from wherry.images.answers import Complaint, complaint
from wherry.images.attempts import TRANSIENT, Stopped
from wherry.images.media import OCI_INDEX, OCI_MANIFEST, Descriptor, digest_of
from wherry.images.reference import is_digest
from wherry.images.registry import MAX_MANIFEST_BYTES, RegistryClient
from wherry.images.session import RetryLater, pull_scope, push_scope

SINGLE_REQUEST_BYTES = 1 << 20
"""Blobs up to this size need no PATCH."""

PIECE_BYTES = 64 << 10
"""What is handed to the connection at a time; a slow one has to get it through in time."""

_SMALLER_CHUNK_BYTES = 16 << 20
"""The most in one PATCH, once a registry (or a proxy before it) has called one too large: 413."""

_SMALLEST_CHUNK_BYTES = 1 << 20
_MOUNT_TRIES = 3
_LOST = frozenset({"BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID", "RANGE_INVALID"})
_RANGE = re.compile(r"(?:bytes[= ])?0-(\d+)")

Content = Callable[[int, int], Iterator[bytes]]
"""content(start, end): these bytes of the blob, in pieces of at most `PIECE_BYTES`."""


class Outcome(enum.Enum):
    """How a blob came to be in a repository."""

    EXISTS = enum.auto()
    MOUNTED = enum.auto()
    UPLOADED = enum.auto()


@dataclass(frozen=True, slots=True)
class BlobPushed:
    """`source`: the repository that it was mounted from, else ""."""

    outcome: Outcome
    source: str = ""


class RegistryWriter:
    """Writes to repositories of `client`'s registry. Thread-safe."""

    def __init__(self, client: RegistryClient) -> None:
        self._client = client
        self._attempts = client.attempts
        self._session = client.session

    def put_blob(
        self,
        repository: str,
        descriptor: Descriptor,
        content: Content,
        sources: Sequence[str] = (),
        sent: Callable[[int], None] = lambda count: None,
    ) -> BlobPushed:
        """See to it that a blob is in a repository.

        Args:
            sources: other repositories of this registry that may have it.
            sent: told how many bytes are on their way; only when it is uploaded.

        Raises:
            RegistryError, Unauthorized, Stopped. What `content` raises passes through.
        """
        what = f"blob {descriptor.digest}"

        def exists() -> bool:
            return self._has(repository, descriptor)

        if self._attempts.retried(repository, what, exists):
            return BlobPushed(Outcome.EXISTS)
        upload = _Upload(self._client, repository, descriptor, content, sent, exists)
        for source in sources[:_MOUNT_TRIES]:
            if upload.mount(source):
                return BlobPushed(Outcome.MOUNTED, source)
            if upload.has_begun:
                break  # the registry has answered the mount with an upload
        upload.run()
        return BlobPushed(Outcome.UPLOADED)

    def put_manifest(self, repository: str, reference: str, media_type: str, body: bytes) -> bool:
        """Put a manifest or index under a tag or its digest, as it is.

        Returns:
            Whether the registry has noted the manifest's `subject` (it has a referrers API).

        Raises:
            RegistryError: refused, with the reason. Unauthorized. ContentMismatch: the registry
            has stored something else.
        """
        what = f"manifest {reference}"

        def put() -> bool:
            with self._session.request(
                "PUT",
                f"/v2/{repository}/manifests/{reference}",
                {"Content-Type": media_type},
                push_scope(repository),
                body=body,
                patient=True,
            ) as response:
                if response.status not in (200, 201, 202):
                    raise self._manifest_refused(
                        complaint(response), repository, what, media_type, len(body)
                    )
                stored = response.headers.get("Docker-Content-Digest")
                if stored and is_digest(stored) and stored != digest_of(body):
                    raise ContentMismatch(
                        self._attempts.message(
                            repository, what, f"it was stored as {stored}, not {digest_of(body)}"
                        )
                    )
                return "OCI-Subject" in response.headers

        return self._attempts.retried(repository, what, put)

    def _has(self, repository: str, descriptor: Descriptor) -> bool:
        """A refusal counts as no: the upload will be refused too, and with words."""
        path = f"/v2/{repository}/blobs/{descriptor.digest}"
        with self._session.request("HEAD", path, {}, push_scope(repository)) as response:
            length = response.headers.get("Content-Length") or str(descriptor.size)
            return response.status == 200 and length == str(descriptor.size)

    def _manifest_refused(
        self, why: Complaint, repository: str, what: str, media_type: str, size: int
    ) -> WherryError:
        if why.status == 413 or (size > MAX_MANIFEST_BYTES and why.status == 400):
            words = f"it has {size} bytes, which is too large for the registry: {why}"
            return RegistryError(self._attempts.message(repository, what, words))
        about_blobs = any("BLOB" in code for code in why.codes)
        if why.status in (400, 415, 422) and not about_blobs:
            words = f"the registry does not take this {_kind(media_type)} ({media_type}): {why}"
            hint = None
            if media_type in (OCI_MANIFEST, OCI_INDEX):
                hint = (
                    "the registry may know Docker's media types only; Wherry pushes an image as "
                    "it is, `skopeo copy --format v2s2` converts"
                )
            return RegistryError(self._attempts.message(repository, what, words), hint=hint)
        return self._attempts.refusal(why, repository, what)


def _kind(media_type: str) -> str:
    if media_type in (OCI_MANIFEST, OCI_INDEX):
        return f"OCI {'index' if media_type == OCI_INDEX else 'manifest'}"
    return "manifest"


class _Upload:
    """The upload of one blob: where the registry wants it, and how far it came."""

    def __init__(
        self,
        client: RegistryClient,
        repository: str,
        descriptor: Descriptor,
        content: Content,
        sent: Callable[[int], None],
        exists: Callable[[], bool],
    ) -> None:
        self._attempts = client.attempts
        self._session = client.session
        self._repository = repository
        self._descriptor = descriptor
        self._content = content
        self._sent = sent
        self._exists = exists
        self._what = f"blob {descriptor.digest}"
        self._begin = f"/v2/{repository}/blobs/uploads/"
        self._location: str | None = None
        self._offset = 0
        self._most = descriptor.size
        self._resumed = False

    @property
    def has_begun(self) -> bool:
        return self._location is not None

    def mount(self, source: str) -> bool:
        """Take the blob from another repository; False when that is not possible."""
        query = urllib.parse.urlencode({"mount": self._descriptor.digest, "from": source})
        target = f"{self._begin}?{query}"
        scope = f"{push_scope(self._repository)} {pull_scope(source)}"

        def post() -> bool:
            with self._session.request(
                "POST", target, {"Content-Length": "0"}, scope, body=b""
            ) as response:
                if response.status == 202:
                    self._location = self._session.location(target, response)
                return response.status == 201

        try:
            return self._attempts.retried(self._repository, self._what, post)
        except WherryError:  # it is only a short cut: the upload will tell what is wrong
            return False

    def run(self) -> None:
        """Upload, and go on after breaks. Errors as `RegistryWriter.put_blob`'s."""
        backoff = self._attempts.backoff()
        while True:
            reached = self._offset
            try:
                if self._step():
                    return
                backoff.progressed(max(0, self._offset - reached))
            except (RetryLater, *TRANSIENT) as error:
                self._attempts.wait(error, self._repository, self._what, backoff)
                if self._attempts.until_it_works(
                    self._repository, self._what, self._find_out, backoff
                ):
                    return
                backoff.progressed(max(0, self._offset - reached))

    def _step(self) -> bool:
        """The next request; True when the blob is there."""
        size = self._descriptor.size
        if self._location is None:
            self._start()
        elif self._offset == 0 and size <= SINGLE_REQUEST_BYTES:
            self._finish(0)
            return True
        elif self._offset < size:
            self._patch(min(size, self._offset + self._most))
        else:
            self._finish(size)
            return True
        return False

    def _start(self) -> None:
        with self._session.request(
            "POST", self._begin, {"Content-Length": "0"}, push_scope(self._repository), body=b""
        ) as response:
            if response.status != 202:
                raise self._refused(response)
            self._location = self._session.location(self._begin, response)
            least = response.headers.get("OCI-Chunk-Min-Length") or ""
            if least.isascii() and least.isdigit():
                self._most = max(self._most, int(least[:15]))
        if self._location is None:
            raise RegistryError(
                self._attempts.message(self._repository, self._what, "no place for an upload named")
            )
        self._offset = 0

    def _patch(self, end: int) -> None:
        start = self._offset
        headers = {"Content-Range": f"{start}-{end - 1}"}
        with self._send("PATCH", self._location or "", headers, start, end) as response:
            if response.status == 413 and self._make_chunks_smaller():
                self._forget()
                raise RetryLater("one request was too large for the registry (HTTP 413)")
            if response.status not in (201, 202, 204):
                raise self._failed(response)
            self._location = self._moved(response)
            reached = _range_end(response.headers.get("Range"))
        if reached is None or reached >= end:
            self._offset = end
        elif reached > max(start, 1):
            self._offset = reached
        else:
            raise RetryLater("the registry has taken nothing of what was sent")

    def _finish(self, start: int) -> None:
        assert self._location is not None
        sign = "&" if "?" in self._location else "?"
        digest = urllib.parse.quote(self._descriptor.digest, safe="")
        target = f"{self._location}{sign}digest={digest}"
        size = self._descriptor.size
        with self._send("PUT", target, {}, start, size) as response:
            if response.status not in (201, 202, 204):
                raise self._failed(response)
        self._sent(size)

    def _send(
        self, method: str, target: str, headers: dict[str, str], start: int, end: int
    ) -> AbstractContextManager[urllib3.BaseHTTPResponse]:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(end - start),
            **headers,
        }
        return self._session.request(
            method,
            target,
            headers,
            push_scope(self._repository),
            body=lambda: self._pieces(start, end),
            patient=True,
        )

    def _pieces(self, start: int, end: int) -> Iterator[bytes]:
        count = start
        for piece in self._content(start, end):
            if self._attempts.stop.is_set():
                raise Stopped
            yield piece
            count += len(piece)
            self._sent(count)

    def _find_out(self) -> bool:
        """After a break: how far the registry came. It may not know, or have lost everything, or
        have the blob (True): only its answer was lost."""
        if self._location is None:
            return False
        with self._session.request(
            "GET", self._location, {}, push_scope(self._repository)
        ) as response:
            reached = _range_end(response.headers.get("Range")) or 0
            # "0-0" means nothing or one byte.
            known = response.status in (200, 202, 204) and 1 < reached <= self._descriptor.size
            if known:
                self._location = self._moved(response)
                self._offset = reached
                self._resumed = True
                return False
        self._forget()
        return self._exists()

    def _moved(self, response: urllib3.BaseHTTPResponse) -> str:
        assert self._location is not None
        return self._session.location(self._location, response) or self._location

    def _forget(self) -> None:
        self._location = None
        self._offset = 0
        self._resumed = False

    def _make_chunks_smaller(self) -> bool:
        if self._most <= _SMALLEST_CHUNK_BYTES:
            return False
        self._most = min(_SMALLER_CHUNK_BYTES, self._most // 2)
        return True

    def _failed(self, response: urllib3.BaseHTTPResponse) -> Exception:
        """The error for a PATCH or PUT that was not taken."""
        why = complaint(response)
        if why.status in (404, 416) or why.codes & _LOST:
            if why.status != 416:
                self._forget()
            return RetryLater(f"the registry has lost the upload: {why}")
        if "DIGEST_INVALID" in why.codes and self._resumed:
            self._forget()
            return RetryLater(f"the upload did not go on where it stopped: {why}")
        if "DIGEST_INVALID" in why.codes:
            return RegistryError(
                self._attempts.message(self._repository, self._what, str(why)),
                hint="the blob in the store may be damaged: pull or load the image again",
            )
        return self._attempts.refusal(why, self._repository, self._what)

    def _refused(self, response: urllib3.BaseHTTPResponse) -> WherryError:
        return self._attempts.refusal(complaint(response), self._repository, self._what)


def _range_end(value: str | None) -> int | None:
    """How many bytes there are, of a Range header like `0-1023`; None when it says nothing."""
    match = _RANGE.fullmatch((value or "").strip())
    return int(match[1]) + 1 if match else None
