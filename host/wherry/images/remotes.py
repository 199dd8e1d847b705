"""What is known about blobs elsewhere: which repositories have them, and in which form.

`repository` is a full name (`docker.io/library/debian`). What is known of a blob that is no longer
stored is forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from wherry.images.store_db import StoreDb


class Remotes:
    """Tables of the store's database."""

    def __init__(self, db: StoreDb) -> None:
        self._db = db

    def note_sources(self, repository: str, blobs: Iterable[str]) -> None:
        """These blobs are in that repository."""
        now = time.time_ns()
        with self._db.write() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO blob_sources VALUES (?, ?, ?)",
                [(blob, repository, now) for blob in blobs],
            )
            connection.execute(
                "DELETE FROM blob_sources WHERE blob NOT IN (SELECT object FROM image_objects) "
                "AND blob NOT IN (SELECT object FROM leases)"
            )

    def sources(self, blob: str, domain: str) -> Sequence[str]:
        """Repositories (paths) of a registry that have a blob, the latest first."""
        found = self._db.rows(
            "SELECT repository FROM blob_sources WHERE blob = ? AND repository >= ? "
            "AND repository < ? ORDER BY time_ns DESC",
            blob,
            f"{domain}/",
            f"{domain}0",  # the sign behind the slash
        )
        return [str(row[0]).removeprefix(f"{domain}/") for row in found]

    def compressed(self, diff_id: str) -> str | None:
        """The blob that an uncompressed layer was compressed to before."""
        found = self._db.rows("SELECT blob FROM compressed WHERE diff_id = ?", diff_id)
        return str(found[0][0]) if found else None

    def note_compressed(self, diff_id: str, blob: str) -> None:
        with self._db.write() as connection:
            connection.execute("INSERT OR REPLACE INTO compressed VALUES (?, ?)", (diff_id, blob))

    def note_pushed(
        self, image_id: str, repository: str, digest: str, objects: Iterable[str]
    ) -> None:
        """An image is in a repository under that digest now; `objects` belong to it."""
        with self._db.write() as connection:
            if not connection.execute("SELECT 1 FROM images WHERE id = ?", (image_id,)).fetchone():
                return  # removed meanwhile
            connection.execute(
                "INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", (repository, digest, image_id)
            )
            connection.execute("UPDATE exported SET seq = -1")
        self.keep(image_id, objects)

    def keep(self, image_id: str, objects: Iterable[str]) -> None:
        """Let further objects belong to an image, if it is still there."""
        with self._db.write() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO image_objects SELECT id, ? FROM images WHERE id = ?",
                [(name, image_id) for name in objects],
            )

    def digests_of(self, image_id: str) -> Sequence[str]:
        """What an image was pulled or pushed as (indexes and manifests), the latest first."""
        found = self._db.rows(
            "SELECT DISTINCT digest FROM digests WHERE image_id = ? ORDER BY rowid DESC", image_id
        )
        return [str(row[0]) for row in found]
