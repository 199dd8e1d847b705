"""The image store's database: its schema, version by version, and its rows as values."""

from __future__ import annotations

from dataclasses import dataclass

MIGRATIONS = (
    """
    CREATE TABLE images (
        id TEXT PRIMARY KEY, manifest_digest TEXT NOT NULL, export_digest TEXT NOT NULL,
        export_size INTEGER NOT NULL, os TEXT NOT NULL, architecture TEXT NOT NULL,
        variant TEXT NOT NULL, created_ns INTEGER NOT NULL, size INTEGER NOT NULL,
        raw_config BLOB NOT NULL
    ) STRICT;
    CREATE TABLE image_layers (
        image_id TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE, position INTEGER NOT NULL,
        diff_id TEXT NOT NULL, blob TEXT NOT NULL, blob_size INTEGER NOT NULL,
        PRIMARY KEY (image_id, position)
    ) STRICT;
    CREATE TABLE image_objects (
        image_id TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE, object TEXT NOT NULL,
        PRIMARY KEY (image_id, object)
    ) STRICT;
    CREATE INDEX image_objects_object ON image_objects(object);
    CREATE TABLE tags (
        name TEXT PRIMARY KEY, image_id TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE
    ) STRICT;
    CREATE TABLE digests (
        repository TEXT NOT NULL, digest TEXT NOT NULL,
        image_id TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE,
        PRIMARY KEY (repository, digest)
    ) STRICT;
    CREATE TABLE tag_log (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, time_ns INTEGER NOT NULL, name TEXT NOT NULL,
        old_id TEXT, new_id TEXT
    ) STRICT;
    CREATE TABLE layers (
        diff_id TEXT NOT NULL, format INTEGER NOT NULL, size INTEGER NOT NULL,
        data_bytes INTEGER NOT NULL, entries INTEGER NOT NULL, tar_bytes INTEGER NOT NULL,
        opaque_root INTEGER NOT NULL, PRIMARY KEY (diff_id, format)
    ) STRICT;
    CREATE TABLE leases (
        holder TEXT NOT NULL, object TEXT NOT NULL, expires_ns INTEGER,
        PRIMARY KEY (holder, object)
    ) STRICT;
    CREATE INDEX leases_object ON leases(object);
    CREATE TABLE garbage (object TEXT PRIMARY KEY) STRICT;
    CREATE TABLE exported (seq INTEGER NOT NULL) STRICT;
    INSERT INTO exported VALUES (-1);
    """,
    # The digest that a tag pointed to; layer blobs that were given up and can be fetched again.
    """
    ALTER TABLE tag_log ADD COLUMN digest TEXT;
    CREATE INDEX tag_log_name ON tag_log(name, seq);
    CREATE INDEX tag_log_new_id ON tag_log(new_id);
    CREATE INDEX image_layers_diff_id ON image_layers(diff_id);
    CREATE INDEX images_manifest ON images(manifest_digest);
    CREATE TABLE dropped (blob TEXT PRIMARY KEY) STRICT;
    UPDATE exported SET seq = -1
    """,
    # Repositories that have a blob; uncompressed layers that were compressed for a push.
    """
    CREATE TABLE blob_sources (
        blob TEXT NOT NULL, repository TEXT NOT NULL, time_ns INTEGER NOT NULL,
        PRIMARY KEY (blob, repository)
    ) STRICT;
    CREATE TABLE compressed (diff_id TEXT PRIMARY KEY, blob TEXT NOT NULL) STRICT
    """,
    # Whether what is on disk is still to be looked at: the database is new, or the old one is lost.
    """
    CREATE TABLE rebuild (pending INTEGER NOT NULL) STRICT;
    INSERT INTO rebuild SELECT count(*) = 0 FROM images
    """,
)
"""One script per schema version, `PRAGMA user_version`. Add to the end; never change one."""


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image; `id` is its config's digest, `export_…` are of its manifest in OCI's form."""

    id: str
    manifest_digest: str
    export_digest: str
    export_size: int
    os: str
    architecture: str
    variant: str
    created_ns: int
    size: int
    raw_config: bytes


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A layer of an image: its diffID and the blob that it came in."""

    diff_id: str
    blob: str
    blob_size: int


@dataclass(frozen=True, slots=True)
class TagChange:
    """A line of a tag's log.

    Attributes:
        name: the full tag.
        time_ns: nanoseconds since the epoch.
        image_id: what it pointed to from then on; None: it was removed.
        digest: as one writes behind `@`: what was pulled, else the manifest's digest; None: not
            known, or removed.
        present: whether that image is still stored.
    """

    name: str
    time_ns: int
    image_id: str | None
    digest: str | None
    present: bool
