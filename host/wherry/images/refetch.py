"""Get again what was stored: from the registries that images were pulled from or pushed to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from wherry.errors import StorageError, WherryError
from wherry.images.clients import Registries
from wherry.images.media import Descriptor, digest_of
from wherry.images.parts import Parts
from wherry.images.progress import Reporter
from wherry.images.pull import RegistrySource
from wherry.images.reference import parse_reference
from wherry.images.store_db import LayerRow


class Refetcher:
    """Fetches for the images of one store; credentials are those of config.json."""

    def __init__(self, parts: Parts, registries: Registries) -> None:
        self._parts = parts
        self._registries = registries

    def layers(self, rows: Sequence[LayerRow], image_id: str, reporter: Reporter) -> None:
        """Fetch the blobs of layers that are missing.

        Raises:
            StorageError: no registry is known to have them, or none gave them.
        """

        def fetch(source: RegistrySource) -> bool:
            self._parts.layers.ensure(rows, source, reporter, blobs=True)
            return True

        self._first(image_id, rows[0].blob, reporter, fetch)

    def blob(self, digest: str, size: int, image_id: str, reporter: Reporter) -> None:
        """Fetch a blob and put it in the place of what is there; errors as `layers`'."""

        def fetch(source: RegistrySource) -> bool:
            descriptor = Descriptor("", digest, size)
            with self._parts.layout.new_blob(digest) as blob:
                for chunk in source.blob(descriptor):
                    blob.write(chunk)
                blob.check(source.describe(descriptor))
                blob.commit()
            return True

        self._first(image_id, digest, reporter, fetch)

    def manifest(self, digest: str, image_id: str, reporter: Reporter) -> None:
        """Fetch a manifest or index and put it in the place of what is there."""

        def fetch(source: RegistrySource) -> bool:
            body = source.manifest(digest).body
            if digest_of(body) != digest:
                return False
            with self._parts.layout.new_blob(digest) as blob:
                blob.write(body)
                blob.commit()
            return True

        self._first(image_id, digest, reporter, fetch)

    def _first(
        self,
        image_id: str,
        blob: str,
        reporter: Reporter,
        fetch: Callable[[RegistrySource], bool],
    ) -> None:
        """`fetch` from the first place that has it."""
        complaint: WherryError | None = None
        for source in self._sources(image_id, blob, reporter):
            try:
                if fetch(source):
                    return
            except WherryError as error:
                complaint = error
        if complaint is not None:
            raise StorageError(
                f"blob {blob} is not stored and cannot be fetched again: {complaint.message}",
                hint=complaint.hint,
            ) from complaint
        raise StorageError(
            f"blob {blob} is not stored, and no registry is known to have it",
            hint="was the image made on this machine? load it from an archive again",
        )

    def _sources(self, image_id: str, blob: str, reporter: Reporter) -> Iterator[RegistrySource]:
        found = self._parts.db.rows(
            "SELECT repository FROM digests WHERE image_id = ? "
            "UNION SELECT repository FROM blob_sources WHERE blob = ?",
            image_id,
            blob,
        )
        for (name,) in found:
            reference = parse_reference(str(name))
            if reference.is_local:
                continue
            client = self._registries.client(reference.domain, None, reporter.stop)
            yield RegistrySource(client, reference.path, reference.familiar)
