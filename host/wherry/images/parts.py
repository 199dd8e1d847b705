"""What the image store is made of, for the modules that each do one thing with it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from wherry.errors import StorageError
from wherry.images.finding import Finder
from wherry.images.ingest import Ingest
from wherry.images.layers import EROFS_OBJECT, LayerStore
from wherry.images.layout import Exported, Layout
from wherry.images.platform import Platform
from wherry.images.pull import ImageLimits
from wherry.images.reference import parse_reference
from wherry.images.store_db import LayerRow, StoreDb
from wherry.osutil import has_no_room

log = logging.getLogger(__name__)
T = TypeVar("T")

_FULL_HINT = "free some space, or set WHERRY_HOME to a directory on another disk"


@dataclass(frozen=True, slots=True)
class Settled:
    """What a collection removed: layers (diffIDs), and how many bytes of files."""

    layers: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Parts:
    """One store's parts; `root`: the state directory, `native`: what its machine runs by itself."""

    root: Path
    native: Platform
    limits: ImageLimits
    ingest: Ingest
    layout: Layout
    db: StoreDb
    layers: LayerStore
    finder: Finder

    def settle(self) -> Settled:
        """After a change: remove what nobody needs, export the tags."""
        freed = 0

        def remove(name: str) -> bool:
            nonlocal freed
            if name.startswith(EROFS_OBJECT):
                diff_id = name.removeprefix(EROFS_OBJECT)
                freed += self.layers.stored_bytes(diff_id)
                return self.layers.remove(diff_id)
            freed += self.layout.stored_bytes(name)
            return self.layout.remove(name)

        gone = self.db.collect(remove)
        try:
            self.db.export(self._export)
        except OSError as error:
            if not has_no_room(error):
                raise
            log.warning("index.json is as it was, until there is room: %s", error)
        layers = (it.removeprefix(EROFS_OBJECT) for it in gone if it.startswith(EROFS_OBJECT))
        return Settled(tuple(layers), freed)

    def noting_removal(self, image_id: str, note: Callable[[], T]) -> T:
        """Do `note`, which stores that an image goes; on a disk that has no room even for that, the
        files go first that only this image has, and that can be made again should it stay.

        Raises:
            StorageError: as from `note`; there was nothing to remove, or it was not enough.
        """
        try:
            return note()
        except StorageError:
            if not self._give_up_layers(image_id):
                raise
            return note()

    def _give_up_layers(self, image_id: str) -> bool:
        """Remove its EROFS files, where nobody else has them and their blobs are there."""
        alone = {
            str(row[0])
            for row in self.db.rows(
                "SELECT object FROM image_objects WHERE image_id = ? AND object NOT IN "
                "(SELECT object FROM image_objects WHERE image_id != ?) "
                "AND object NOT IN (SELECT object FROM leases)",
                image_id,
                image_id,
            )
        }
        found = [
            layer.diff_id
            for layer in self.db.layers_of(image_id)
            if EROFS_OBJECT + layer.diff_id in alone
            and self.layers.stored_bytes(layer.diff_id)
            and self.layout.has(layer.blob, layer.blob_size)
        ]
        return sum(self.layers.remove(diff_id) for diff_id in found) > 0

    def on_disk(self) -> Iterator[str]:
        """The objects that there are files of, wanted or not."""
        yield from self.layout.digests()
        for diff_id in self.layers.diff_ids():
            yield EROFS_OBJECT + diff_id

    def check_space(self, needed: int, what: str) -> None:
        """Raises StorageError when `needed` bytes are not free."""
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise StorageError(
                f"{what} needs more than {needed >> 20} MiB, {free >> 20} MiB are free "
                f"in {self.root}",
                hint=_FULL_HINT,
            )

    def _export(self) -> None:
        """All images, untagged ones too: `rebuild` reads this when the database is lost."""
        tags, digests = self.db.names()
        entries = []
        for row in self.db.images():
            platform = (row.os, row.architecture, row.variant)
            known_as = [f"{name}@{digest}" for name, digest in digests.get(row.id, [])]
            for name in tags.get(row.id) or [""]:
                entries.append(
                    Exported(
                        parse_reference(name).familiar if name else "",
                        name,
                        row.export_digest,
                        row.export_size,
                        platform,
                        row.manifest_digest,
                        tuple(known_as),
                    )
                )
        self.layout.export_index(entries)


@contextmanager
def disk_errors() -> Iterator[None]:
    """What the operating system says about our own files, as the user's error."""
    try:
        yield
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        raise StorageError(
            f"the image store cannot be written{place}: {error.strerror or error}",
            hint=_FULL_HINT if has_no_room(error) else None,
        ) from error


def objects_of(layers: Sequence[LayerRow], documents: Iterable[str]) -> list[str]:
    """The objects that an image needs: blobs (its layers' and `documents`) and EROFS files."""
    blobs = {layer.blob for layer in layers} | set(documents)
    return sorted(blobs | {EROFS_OBJECT + layer.diff_id for layer in layers})
