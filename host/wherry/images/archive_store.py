"""What the engine does with archives: save, load, import. Thread-safe, synchronous.

From `ImageStore.archives`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from wherry.images.image import Image
from wherry.images.importing import NewImage, import_rootfs
from wherry.images.loading import Loaded, load
from wherry.images.parts import Parts, disk_errors
from wherry.images.platform import parse_platform
from wherry.images.progress import PullEvent, Reporter
from wherry.images.reference import parse_tagged
from wherry.images.refetch import Refetcher
from wherry.images.saving import DOCKER_ARCHIVE, SavedArchive, save
from wherry.images.store_db import LayerRow

Progress = Callable[[PullEvent], None]


class Archives:
    """Archives, for the images of one store."""

    def __init__(self, parts: Parts, refetcher: Refetcher) -> None:
        self._parts = parts
        self._refetcher = refetcher

    def save(
        self, refs: Sequence[str], form: str = DOCKER_ARCHIVE, progress: Progress | None = None
    ) -> SavedArchive:
        """Images as one tar: its size, and its bytes to read once. See `saving.save`.

        Raises:
            ImageNotFound, InvalidReference, InvalidInput, StorageError.
        """
        reporter = Reporter(progress)

        def fetch(rows: Sequence[LayerRow], image_id: str) -> None:
            self._refetcher.layers(rows, image_id, reporter)

        with disk_errors():
            return save(self._parts, refs, form, fetch)

    def load(
        self,
        chunks: Iterator[bytes],
        platform: str | None = None,
        progress: Progress | None = None,
    ) -> Sequence[Loaded]:
        """Store the images of an archive, all or none. See `loading.load`."""
        wanted = parse_platform(platform) if platform is not None else None
        with disk_errors():
            return load(self._parts, chunks, wanted, Reporter(progress))

    def import_rootfs(
        self,
        chunks: Iterator[bytes],
        *,
        name: str | None = None,
        changes: Sequence[str] = (),
        message: str = "",
        platform: str | None = None,
        progress: Progress | None = None,
    ) -> Image:
        """An image of the tar of a root file system. See `importing.import_rootfs`.

        Args:
            name: the tag that it gets. changes, message: as `docker import`'s.
        """
        tag = str(parse_tagged(name)) if name else None
        wanted = parse_platform(platform) if platform else None
        new = NewImage(changes, message, wanted)
        with disk_errors():
            image_id = import_rootfs(self._parts, chunks, new, tag, Reporter(progress))
        return self._parts.finder.load(image_id)
