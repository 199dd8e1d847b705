"""What the image store knows: images, tags and their log, leases, layers. SQLite.

Rule of collection: an *object* (a blob, `sha256:…`; an EROFS file, `erofs:sha256:…`) is kept while
an image or a lease names it. Whoever is about to use objects takes a lease first and looks whether
they are there second; objects are removed inside a write transaction that looks for leases. So
nothing is removed under somebody's hands, in whichever process. What may have lost its last
holder is written to `garbage` first, so that a crash between forgetting and removing leaks nothing.

Journal mode WAL, synchronous FULL: what was committed survives a power failure.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wherry.errors import StorageError
from wherry.images.convert import ConvertedLayer
from wherry.images.store_schema import MIGRATIONS, ImageRow, LayerRow, TagChange
from wherry.osutil.databases import Database, database_hint
from wherry.osutil.reserve import Reserve

__all__ = ["ImageRow", "LayerRow", "StoreDb", "TagChange"]

_BUSY_SECONDS = 60.0
_OBJECTS_PER_COLLECTION = 2000


class StoreDb:
    """The database at `path`, made or migrated when it is opened. Thread-safe.

    Raises:
        StorageError: it cannot be opened, is damaged, or was written by a newer Wherry.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._reserve = Reserve(path.parent)
        try:
            self._database = Database(path, self._connect, self._migrate)
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def rebuild_pending(self) -> bool:
        """Whether the database is new, and nobody has looked for what an older one knew."""
        return bool(self.rows("SELECT 1 FROM rebuild WHERE pending"))

    def rebuilt(self) -> None:
        with self.write() as connection:
            connection.execute("UPDATE rebuild SET pending = 0")

    def close(self) -> None:
        with self._lock:
            self._database.close()

    @contextmanager
    def write(self, *, frees: bool = False) -> Iterator[sqlite3.Connection]:
        """A write transaction, the only one in all processes; rolled back on an exception.

        Args:
            frees: something is removed by it: on a full disk it may take of the reserve.
        """
        with self._lock:
            try:
                with _transaction(self._database.writable()) as connection:
                    yield connection
                    if frees:
                        self._reserve.release_when_full()
            except sqlite3.Error as error:
                raise self._failure(error) from error

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """All rows of a query."""
        with self._lock:
            try:
                return self._database.connection.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise self._failure(error) from error

    # Images and their names.

    def image(self, image_id: str) -> ImageRow | None:
        found = self.rows(f"SELECT {_IMAGE} FROM images WHERE id = ?", image_id)
        return ImageRow(*found[0]) if found else None  # type: ignore[arg-type]  # STRICT table

    def images(self) -> list[ImageRow]:
        """All images, the newest first."""
        found = self.rows(f"SELECT {_IMAGE} FROM images ORDER BY created_ns DESC, id")
        return [ImageRow(*row) for row in found]  # type: ignore[arg-type]  # STRICT table

    def ids_starting(self, prefix: str) -> list[str]:
        """Ids that begin with `sha256:` and some hexadecimal digits; at most two."""
        found = self.rows(
            "SELECT id FROM images WHERE id >= ? AND id < ? LIMIT 2", prefix, prefix + "g"
        )
        return [str(row[0]) for row in found]

    def tag_target(self, name: str) -> str | None:
        found = self.rows("SELECT image_id FROM tags WHERE name = ?", name)
        return str(found[0][0]) if found else None

    def digest_target(self, repository: str, digest: str) -> str | None:
        """The image of `repository@digest`: pulled so, or the manifest of one that a tag of this
        repository ever pointed to."""
        found = self.rows(
            "SELECT image_id FROM digests WHERE repository = ? AND digest = ?", repository, digest
        ) or self.rows(
            "SELECT id FROM images WHERE manifest_digest = ? AND EXISTS (SELECT 1 FROM tag_log "
            "WHERE new_id = images.id AND name >= ? AND name < ?)",
            digest,
            f"{repository}:",
            f"{repository};",
        )
        return str(found[0][0]) if found else None

    def tag_log(self, name: str) -> list[TagChange]:
        """What a tag pointed to, the newest change first."""
        found = self.rows(
            "SELECT name, time_ns, new_id, digest, new_id IN (SELECT id FROM images) "
            "FROM tag_log WHERE name = ? ORDER BY seq DESC",
            name,
        )
        return [
            TagChange(*row[:4], bool(row[4]))  # type: ignore[call-arg, arg-type]  # STRICT table
            for row in found
        ]

    def names(self) -> tuple[dict[str, list[str]], dict[str, list[tuple[str, str]]]]:
        """Of every image id: its full tags, and its (repository, digest) pairs; sorted."""
        tags: dict[str, list[str]] = {}
        for name, image_id in self.rows("SELECT name, image_id FROM tags ORDER BY name"):
            tags.setdefault(str(image_id), []).append(str(name))
        digests: dict[str, list[tuple[str, str]]] = {}
        for repository, digest, image_id in self.rows(
            "SELECT repository, digest, image_id FROM digests ORDER BY repository, digest"
        ):
            digests.setdefault(str(image_id), []).append((str(repository), str(digest)))
        return tags, digests

    def tags_in(self, repository: str) -> list[tuple[str, str]]:
        """A repository's tags as (image id, full tag)."""
        found = self.rows(
            "SELECT image_id, name FROM tags WHERE name >= ? AND name < ? ORDER BY name",
            f"{repository}:",
            f"{repository};",  # the sign behind the colon
        )
        return [(str(image_id), str(name)) for image_id, name in found]

    def names_of(self, image_id: str) -> tuple[list[str], list[tuple[str, str]]]:
        """One image's full tags and its (repository, digest) pairs; sorted."""
        tags = self.rows("SELECT name FROM tags WHERE image_id = ? ORDER BY name", image_id)
        digests = self.rows(
            "SELECT repository, digest FROM digests WHERE image_id = ? ORDER BY repository, digest",
            image_id,
        )
        return [str(row[0]) for row in tags], [(str(row[0]), str(row[1])) for row in digests]

    def layers_of(self, image_id: str) -> list[LayerRow]:
        """An image's layers, lowest first."""
        found = self.rows(
            "SELECT diff_id, blob, blob_size FROM image_layers WHERE image_id = ? "
            "ORDER BY position",
            image_id,
        )
        return [LayerRow(*row) for row in found]  # type: ignore[arg-type]  # STRICT table

    def objects_of(self, image_id: str) -> list[str]:
        """All objects that an image needs."""
        found = self.rows("SELECT object FROM image_objects WHERE image_id = ?", image_id)
        return [str(row[0]) for row in found]

    def add_image(
        self,
        row: ImageRow,
        layers: Iterable[LayerRow],
        objects: Iterable[str],
        tag: str | None,
        digest: tuple[str, str] | None,
        *,
        holder: str,
    ) -> bool:
        """Store an image (again), point names at it and end the lease of `holder`, which held the
        same objects; in one transaction. False, and nothing done, when there is no such lease:
        then they may be gone."""
        with self.write() as connection:
            ended = connection.execute("DELETE FROM leases WHERE holder = ?", (holder,))
            if not ended.rowcount:
                return False
            marks = ", ".join("?" * len(_IMAGE_FIELDS))
            updates = ", ".join(f"{name} = excluded.{name}" for name in _IMAGE_FIELDS[1:])
            connection.execute(
                f"INSERT INTO images ({_IMAGE}) VALUES ({marks}) "
                f"ON CONFLICT (id) DO UPDATE SET {updates}",
                [getattr(row, name) for name in _IMAGE_FIELDS],
            )
            connection.execute("DELETE FROM image_layers WHERE image_id = ?", (row.id,))
            connection.executemany(
                "INSERT INTO image_layers VALUES (?, ?, ?, ?, ?)",
                [(row.id, n, it.diff_id, it.blob, it.blob_size) for n, it in enumerate(layers)],
            )
            connection.executemany(
                "INSERT OR IGNORE INTO image_objects VALUES (?, ?)",
                [(row.id, name) for name in objects],
            )
            if digest is not None:
                connection.execute(
                    "INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", (*digest, row.id)
                )
            if tag is not None:
                _point(connection, tag, row.id, digest[1] if digest else row.manifest_digest)
            _changed(connection)
        return True

    def set_tag(self, name: str, image_id: str, digest: str | None = None) -> None:
        """Let a tag name an image. `digest`: under which its log has it; None: what is known."""
        with self.write() as connection:
            _point(connection, name, image_id, digest or _digest_under(connection, name, image_id))

    def remove_names(self, tags: Iterable[str], digests: Iterable[tuple[str, str]]) -> None:
        with self.write(frees=True) as connection:
            _changed(connection)
            for name in tags:
                _point(connection, name, None)
            connection.executemany(
                "DELETE FROM digests WHERE repository = ? AND digest = ?", list(digests)
            )

    def remove_image(self, image_id: str) -> None:
        """Forget an image and its names; its objects become candidates for collection."""
        with self.write(frees=True) as connection:
            _forget_image(connection, image_id)

    def remove_unused(self, image_id: str, *, with_tags: bool) -> bool:
        """Forget an image that nobody uses: no lease but those of pulls, and without `with_tags` no
        tag. False when it is used."""
        with self.write(frees=True) as connection:
            used = connection.execute(
                "SELECT 1 FROM leases WHERE object = ? AND holder NOT LIKE 'pull:%' "
                "UNION ALL SELECT 1 FROM tags WHERE image_id = ? AND NOT ?",
                (image_id, image_id, with_tags),
            )
            if used.fetchone():
                return False
            _forget_image(connection, image_id)
        return True

    # Layers.

    def layer(self, diff_id: str, format_version: int) -> ConvertedLayer | None:
        found = self.rows(
            "SELECT size, data_bytes, entries, tar_bytes, opaque_root FROM layers "
            "WHERE diff_id = ? AND format = ?",
            diff_id,
            format_version,
        )
        if not found:
            return None
        size, data_bytes, entries, tar_bytes, opaque_root = (int(str(it)) for it in found[0])
        return ConvertedLayer(size, data_bytes, entries, tar_bytes, bool(opaque_root), diff_id)

    def add_layer(self, diff_id: str, format_version: int, layer: ConvertedLayer) -> None:
        with self.write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO layers VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    diff_id,
                    format_version,
                    layer.size,
                    layer.data_bytes,
                    layer.entries,
                    layer.tar_bytes,
                    int(layer.opaque_root),
                ),
            )

    def note_dropped(self, blob: str) -> None:
        with self.write() as connection:
            connection.execute("INSERT OR IGNORE INTO dropped VALUES (?)", (blob,))

    def is_dropped(self, blob: str) -> bool:
        """Whether a layer's blob was given up: its EROFS file stays, and a registry has it."""
        return bool(self.rows("SELECT 1 FROM dropped WHERE blob = ?", blob))

    # Leases and collection.

    def lease(self, holder: str, objects: Iterable[str], seconds: float | None) -> None:
        """Keep objects for `holder`, for ever (None) or for so many seconds from now."""
        expires = None if seconds is None else time.time_ns() + int(seconds * 1e9)
        with self.write() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO leases VALUES (?, ?, ?)",
                [(holder, name, expires) for name in objects],
            )

    def release(self, holder: str) -> None:
        with self.write(frees=True) as connection:
            _drop_leases(connection, "holder = ?", holder)

    def lease_holders(self) -> list[str]:
        return [str(row[0]) for row in self.rows("SELECT DISTINCT holder FROM leases")]

    def collect(self, remove: Callable[[str], bool]) -> list[str]:
        """Remove objects that nobody holds any more; the removed ones.

        Args:
            remove: removes an object's file; False: it has to stay for now.
        """
        if not self.rows(
            "SELECT 1 FROM garbage UNION ALL SELECT 1 FROM leases WHERE expires_ns < ? LIMIT 1",
            time.time_ns(),
        ):
            return []
        with self.write(frees=True) as connection:
            _drop_leases(connection, "expires_ns < ?", time.time_ns())
            connection.execute(
                "DELETE FROM garbage WHERE object IN (SELECT object FROM image_objects) "
                "OR object IN (SELECT object FROM leases)"
            )
            found = connection.execute(
                "SELECT object FROM garbage LIMIT ?", (_OBJECTS_PER_COLLECTION,)
            )
            gone = [str(name) for (name,) in found.fetchall() if remove(str(name))]
            connection.executemany("DELETE FROM garbage WHERE object = ?", [(g,) for g in gone])
            layers = [(g.removeprefix("erofs:"),) for g in gone if g.startswith("erofs:")]
            connection.executemany("DELETE FROM layers WHERE diff_id = ?", layers)
            connection.executemany("DELETE FROM dropped WHERE blob = ?", [(g,) for g in gone])
        return gone

    # The export of the tags.

    def export(self, write_index: Callable[[], None]) -> None:
        """Call `write_index` when names changed since the last time; one process at a time."""
        if not self._export_is_stale():
            return
        with self.write() as connection:
            if self._export_is_stale():
                write_index()
                connection.execute("UPDATE exported SET seq = (" + _LAST_CHANGE + ")")

    def _export_is_stale(self) -> bool:
        return bool(self.rows(f"SELECT 1 FROM exported WHERE seq != ({_LAST_CHANGE})"))

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            for pragma in (
                "journal_mode=WAL",
                "synchronous=FULL",
                "foreign_keys=ON",
                "fullfsync=ON",
                "checkpoint_fullfsync=ON",
            ):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StorageError(
                f"{self._path} was written by a newer Wherry (schema {version})",
                hint="upgrade Wherry, or set WHERRY_HOME to another directory",
            )
        while version < len(MIGRATIONS):
            with _transaction(connection):
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version < len(MIGRATIONS):
                    for statement in MIGRATIONS[version].split(";"):
                        connection.execute(statement)
                    version += 1
                    connection.execute(f"PRAGMA user_version = {version}")

    def _failure(self, error: sqlite3.Error) -> StorageError:
        damaged = isinstance(error, sqlite3.DatabaseError) and any(
            words in str(error) for words in ("malformed", "not a database")
        )
        hint = "move it away: what it knew is read again from index.json and the blobs"
        return StorageError(
            f"{self._path}: {error}",
            hint=hint
            if damaged
            else database_hint(error, self._path) or "is the disk full or not writable?",
        )


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has rolled it back already
            connection.execute("ROLLBACK")
        raise


def _forget_image(connection: sqlite3.Connection, image_id: str) -> None:
    names = connection.execute("SELECT name FROM tags WHERE image_id = ?", (image_id,))
    for (name,) in names.fetchall():
        _point(connection, name, None)
    connection.execute(
        "INSERT OR IGNORE INTO garbage SELECT object FROM image_objects WHERE image_id = ?",
        (image_id,),
    )
    connection.execute("DELETE FROM images WHERE id = ?", (image_id,))
    _changed(connection)


_IMAGE_FIELDS = tuple(ImageRow.__dataclass_fields__)
_IMAGE = ", ".join(_IMAGE_FIELDS)
_LAST_CHANGE = "SELECT coalesce(max(seq), 0) FROM tag_log"


def _point(
    connection: sqlite3.Connection, name: str, image_id: str | None, digest: str | None = None
) -> None:
    """Let a tag name an image, or none; logged when that changes something."""
    found = connection.execute(
        "SELECT image_id, (SELECT digest FROM tag_log WHERE tag_log.name = tags.name "
        "ORDER BY seq DESC LIMIT 1) FROM tags WHERE name = ?",
        (name,),
    ).fetchone()
    old, old_digest = found or (None, None)
    if image_id is None:
        connection.execute("DELETE FROM tags WHERE name = ?", (name,))
    else:
        connection.execute("INSERT OR REPLACE INTO tags VALUES (?, ?)", (name, image_id))
    if old != image_id or old_digest != digest:
        connection.execute(
            "INSERT INTO tag_log (time_ns, name, old_id, new_id, digest) VALUES (?, ?, ?, ?, ?)",
            (time.time_ns(), name, old, image_id, digest),
        )


def _digest_under(connection: sqlite3.Connection, name: str, image_id: str) -> str | None:
    """The digest by which a tag's repository knows an image, else its manifest's."""
    found = connection.execute(
        "SELECT digest FROM digests WHERE image_id = ? AND repository = ? UNION ALL "
        "SELECT manifest_digest FROM images WHERE id = ?",
        (image_id, name.rpartition(":")[0], image_id),
    ).fetchone()
    return str(found[0]) if found else None


def _changed(connection: sqlite3.Connection) -> None:
    """Something that `index.json` shows is no longer as it was."""
    connection.execute("UPDATE exported SET seq = -1")


def _drop_leases(connection: sqlite3.Connection, condition: str, value: object) -> None:
    connection.execute(
        f"INSERT OR IGNORE INTO garbage SELECT object FROM leases WHERE {condition}", (value,)
    )
    connection.execute(f"DELETE FROM leases WHERE {condition}", (value,))
