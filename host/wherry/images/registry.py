"""A client for the OCI distribution protocol, version 1.1: reading one registry.

Rules: what breaks is tried again, within limits (`retry.py`); a download goes on where it stopped.
Nothing that arrives is longer than was announced. Every error names registry and repository, and
the blob where there is one. Whether a blob's bytes match its digest is checked by who stores them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import urllib3

from wherry.errors import ContentMismatch, ImageNotFound, RegistryError
from wherry.images.answers import CHUNK_BYTES, complaint, read_limited, said
from wherry.images.attempts import TRANSIENT, Attempts, Stopped
from wherry.images.auth import ANONYMOUS, Credentials
from wherry.images.media import ACCEPT, Descriptor, digest_of
from wherry.images.reference import Reference, is_digest
from wherry.images.retry import RetryPolicy
from wherry.images.session import RetryLater, Session, pull_scope
from wherry.images.transport import Transport

__all__ = ["MAX_MANIFEST_BYTES", "ManifestReply", "RegistryClient", "Stopped"]

MAX_MANIFEST_BYTES = 4 << 20
"""distribution-spec 1.1, pushing manifests: registries need not take larger ones."""


@dataclass(frozen=True, slots=True)
class ManifestReply:
    """A manifest or index as the registry sent it; `digest` is that of `body`."""

    media_type: str
    digest: str
    body: bytes


class RegistryClient:
    """The registry of one domain, with one user's credentials. Thread-safe. `upload.py` writes.

    Args:
        domain: as in references: `docker.io`, `localhost:5000`.
        transport: sends the requests; many clients may share it.
        insecure: names from the settings (`host` or `host:port`) that may be plain HTTP.
        stop: when set, transfers end with `Stopped` at the next chunk.
    """

    def __init__(
        self,
        domain: str,
        credentials: Credentials = ANONYMOUS,
        *,
        transport: Transport,
        insecure: tuple[str, ...] = (),
        policy: RetryPolicy | None = None,
        stop: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.domain = domain
        self.session = Session(domain, credentials, insecure, transport, clock)
        self.attempts = Attempts(
            domain, credentials, self.session, policy or RetryPolicy(), stop or threading.Event()
        )

    def ping(self) -> None:
        """Ask whether this is a registry.

        Raises:
            RegistryError: it cannot be reached or is none. Unauthorized: it wants credentials.
        """
        self.attempts.retried(None, "", self._ping)

    def log_in(self) -> str | None:
        """Show the credentials to the registry; an identity token, when there is one.

        Raises:
            Unauthorized: they are refused. RegistryError: it cannot be reached or is none.
        """
        return self.attempts.retried(None, "", self.session.log_in)

    def manifest(self, repository: str, reference: str) -> ManifestReply:
        """Fetch a manifest or index by tag or digest.

        Raises:
            ImageNotFound: the registry has no such thing. Unauthorized. RegistryError.
            ContentMismatch: the bytes do not have the digest asked for or announced.
        """
        path = f"/v2/{repository}/manifests/{reference}"
        return self.attempts.retried(
            repository, f"manifest {reference}", lambda: self._manifest(repository, reference, path)
        )

    def blob(self, repository: str, descriptor: Descriptor, start: int = 0) -> Iterator[bytes]:
        """The blob's bytes from `start` to exactly `descriptor.size`, in chunks; broken connections
        are resumed.

        Raises:
            RegistryError, Unauthorized: it cannot be had. Stopped.
            ContentMismatch: the registry's blob is longer or shorter than the manifest says.
        """
        backoff = self.attempts.backoff()
        what = f"blob {descriptor.digest}"
        offset = start
        while offset < descriptor.size:
            try:
                with self._open_blob(repository, descriptor, offset) as response:
                    for chunk in self._body(response, repository, descriptor, offset):
                        offset += len(chunk)
                        backoff.progressed(len(chunk))
                        yield chunk
                if offset < descriptor.size:
                    raise RetryLater(f"it ended after {offset} of {descriptor.size} bytes")
            except (RetryLater, *TRANSIENT) as error:
                self.attempts.wait(error, repository, what, backoff)

    def _ping(self) -> None:
        with self.session.request("GET", "/v2/", {}, "") as response:
            if response.status != 200:
                raise self.attempts.refusal(complaint(response), None, "")

    def _manifest(self, repository: str, reference: str, path: str) -> ManifestReply:
        what = f"manifest {reference}"
        accept = {"Accept": ACCEPT}
        with self.session.request("GET", path, accept, pull_scope(repository)) as response:
            if response.status == 404:
                raise self._not_found(response, repository, reference)
            if response.status != 200:
                raise self.attempts.refusal(complaint(response), repository, what)
            body = read_limited(response, MAX_MANIFEST_BYTES)
            media_type = (response.headers.get("Content-Type") or "").split(";")[0].strip()
            announced = response.headers.get("Docker-Content-Digest")
        if body is None:
            limit = MAX_MANIFEST_BYTES >> 20
            raise RegistryError(
                self.attempts.message(repository, what, f"it is larger than {limit} MiB")
            )
        if media_type == "text/html":
            raise RegistryError(
                self.attempts.message(repository, what, "the answer is a web page, not a manifest"),
                hint=f"is {self.domain} a registry? A proxy or login page may have answered",
            )
        digest = digest_of(body)
        wanted = reference if is_digest(reference) else announced
        if wanted is not None and is_digest(wanted) and wanted != digest:
            raise ContentMismatch(
                self.attempts.message(repository, what, f"its digest is {digest}, not {wanted}")
            )
        return ManifestReply(media_type, digest, body)

    @contextmanager
    def _open_blob(
        self, repository: str, descriptor: Descriptor, offset: int
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        what = f"blob {descriptor.digest}"
        path = f"/v2/{repository}/blobs/{descriptor.digest}"
        with self.session.request("GET", path, headers, pull_scope(repository)) as response:
            if response.status not in (200, 206):
                raise self.attempts.refusal(complaint(response), repository, what)
            yield response

    def _body(
        self,
        response: urllib3.BaseHTTPResponse,
        repository: str,
        descriptor: Descriptor,
        offset: int,
    ) -> Iterator[bytes]:
        """The bytes from `offset` on, whether or not the server heeded the Range header."""
        if response.status == 206:
            start, total = _content_range(response.headers.get("Content-Range"))
            if start != offset:
                raise RetryLater(f"it sent the range from {start} instead of {offset}")
            skip, announced = 0, total
        else:
            skip, announced = offset, _content_length(response)
        if announced is not None and announced != descriptor.size:
            raise self._wrong_size(repository, descriptor, f"{announced} bytes")
        missing = descriptor.size - offset
        for chunk in response.stream(CHUNK_BYTES, decode_content=False):
            if self.attempts.stop.is_set():
                raise Stopped
            data = chunk[skip:] if skip else chunk
            skip -= len(chunk) - len(data)
            missing -= len(data)
            if missing < 0:
                raise self._wrong_size(repository, descriptor, "more")
            if data:
                yield data

    def _wrong_size(self, repository: str, descriptor: Descriptor, found: str) -> ContentMismatch:
        return ContentMismatch(
            self.attempts.message(
                repository,
                f"blob {descriptor.digest}",
                f"the manifest says {descriptor.size} bytes, the registry has {found}",
            )
        )

    def _not_found(
        self, response: urllib3.BaseHTTPResponse, repository: str, reference: str
    ) -> ImageNotFound:
        image = Reference(
            self.domain,
            repository,
            *((None, reference) if is_digest(reference) else (reference, None)),
        )
        return ImageNotFound(
            f"{image.familiar} was not found in registry {self.domain}: {said(response)}",
            hint="check the name and the tag",
        )


def _content_length(response: urllib3.BaseHTTPResponse) -> int | None:
    text = response.headers.get("Content-Length") or ""
    return int(text) if text.isascii() and text.isdigit() else None


def _content_range(value: str | None) -> tuple[int, int | None]:
    """RFC 9110 section 14.4: first byte and complete length (None for `*`)."""
    unit, _, rest = (value or "").partition(" ")
    span, _, total = rest.partition("/")
    start = span.partition("-")[0]
    if unit.lower() != "bytes" or not start.isdigit():
        raise RetryLater("it answered a range request without Content-Range")
    return int(start), int(total) if total.isdigit() else None
