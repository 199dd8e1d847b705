"""A repository that is read from mirrors first, and from its registry when they fail.

What a mirror sends is checked as everything is; content with a wrong digest is fetched again from
the registry. A tag is what the first mirror that knows it says: mirrors may be behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wherry.errors import ImageNotFound, RegistryError, Unauthorized
from wherry.images.media import Descriptor
from wherry.images.pull import RegistrySource
from wherry.images.registry import ManifestReply

_PASSED_OVER = (ImageNotFound, RegistryError, Unauthorized)


class MirroredSource:
    """Reads from `mirrors`, in order, then from `origin`. Messages speak of the origin."""

    def __init__(self, mirrors: Sequence[RegistrySource], origin: RegistrySource) -> None:
        self._mirrors = tuple(mirrors)
        self._origin = origin
        self._mirrored: set[str] = set()
        self._distrusted: set[str] = set()
        self.name = origin.name

    def manifest(self, reference: str) -> ManifestReply:
        for mirror in self._mirrors:
            try:
                return mirror.manifest(reference)
            except _PASSED_OVER:
                continue
        return self._origin.manifest(reference)

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        return self.blob_from(descriptor, 0)

    def blob_from(self, descriptor: Descriptor, start: int) -> Iterator[bytes]:
        """The bytes from `start` on; the next place goes on where a mirror failed."""
        mirrors = () if descriptor.digest in self._distrusted else self._mirrors
        for mirror in mirrors:
            try:
                for chunk in mirror.blob_from(descriptor, start):
                    self._mirrored.add(descriptor.digest)
                    start += len(chunk)
                    yield chunk
                return
            except _PASSED_OVER:
                continue
        yield from self._origin.blob_from(descriptor, start)

    def describe(self, descriptor: Descriptor) -> str:
        return self._origin.describe(descriptor)

    def distrust(self, descriptor: Descriptor) -> bool:
        """The blob was wrong: take it from the origin from now on. False: it was the origin's."""
        if descriptor.digest not in self._mirrored or descriptor.digest in self._distrusted:
            return False
        self._distrusted.add(descriptor.digest)
        return True
