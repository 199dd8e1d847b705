"""Downloads that go on where an earlier one stopped, in whichever process that was.

An unfinished blob keeps its name (`ingest/HEX.partial`) when its connection breaks for good, its
user gives up or its process is killed. The next one that wants the blob, under the digest's lock,
reads again what is there, which brings the digest up to date, and fetches the rest. Whatever makes
the content doubtful removes the file, and so does a day.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from wherry.errors import ContentMismatch, StorageError
from wherry.images.convert import READ_BYTES
from wherry.images.ingest import Ingest
from wherry.images.layout import BlobFile, Layout
from wherry.images.media import Descriptor
from wherry.images.tar import LayerError
from wherry.osutil import has_no_room

KEEP_SECONDS = 24 * 3600.0
KEEP_BYTES = 1 << 20
"""Less is not worth a file that lies around."""

_DOUBTFUL = (ContentMismatch, LayerError, StorageError, OSError)


class StalePartial(ContentMismatch):
    """The content is wrong, and its beginning was from an earlier download: try without that."""


@runtime_checkable
class Resumable(Protocol):
    """A source that can begin anywhere in a blob."""

    def blob_from(self, descriptor: Descriptor, start: int) -> Iterator[bytes]:
        """The bytes from `start` on; errors as `Source.blob`'s."""


@runtime_checkable
class Mirrored(Protocol):
    """A source with several places to fetch from."""

    def distrust(self, descriptor: Descriptor) -> bool:
        """A blob was wrong; whether there is another place to fetch it from."""


class PartialBlob(BlobFile):
    """A blob being written, perhaps begun before. `size`: bytes that are there and hashed."""

    resumed = False

    def replay(self, most: int) -> Iterator[bytes]:
        """What is there already; more than `most` bytes cannot be right and are dropped."""
        length = self.path.stat().st_size
        if length > most:
            self._file.truncate(0)
            return
        self.resumed = length > 0
        with self.path.open("rb") as file:
            while self.size < length and (chunk := file.read(READ_BYTES)):
                self._hash.update(chunk)
                self.size += len(chunk)
                yield chunk

    def check(self, whose: str) -> None:
        try:
            super().check(whose)
        except ContentMismatch as error:
            if self.resumed:
                raise StalePartial(error.message) from error
            raise


@contextmanager
def partial_blob(ingest: Ingest, layout: Layout, digest: str) -> Iterator[PartialBlob]:
    """The blob, to be written on; gone at the end unless committed, or worth to be gone on with.

    The caller holds the digest's lock.
    """
    path = ingest.partial(digest)
    blob = PartialBlob(path, layout.blob_path(digest), digest, mode="ab")
    keep = False
    try:
        yield blob
    except BaseException as error:
        keep = not isinstance(error, _DOUBTFUL) and blob.size >= KEEP_BYTES
        raise
    finally:
        try:
            blob.close()
        except OSError as error:  # what was buffered does not fit on the disk any more
            keep = False
            if not has_no_room(error):
                raise
        finally:
            if not keep:
                path.unlink(missing_ok=True)


def rest_of(
    source: object, descriptor: Descriptor, start: int, whole: Iterator[bytes]
) -> Iterator[bytes]:
    """A blob from `start` on. `whole`: all of it, for sources that cannot begin in the middle."""
    if start and isinstance(source, Resumable):
        yield from source.blob_from(descriptor, start)
        return
    for chunk in whole:
        if start >= len(chunk):
            start -= len(chunk)
            continue
        yield chunk[start:] if start else chunk
        start = 0


def may_fetch_elsewhere(source: object, descriptor: Descriptor) -> bool:
    """After a blob turned out to be wrong: whether a next try will ask somebody else."""
    return isinstance(source, Mirrored) and source.distrust(descriptor)
