"""The database again, when it is lost: from `index.json`, which lists every image, and the blobs.

What only the database knew is gone: the log of the tags, and who held what. So files that no image
in the index needs are kept for a week: engines take the leases of their containers again meanwhile.
"""

from __future__ import annotations

import logging

from wherry.errors import StorageError, WherryError
from wherry.images.convert import ConvertedLayer
from wherry.images.erofs import FORMAT, layer_uuid
from wherry.images.erofs.reader import ErofsImage
from wherry.images.exploring import size_of
from wherry.images.layout import INDEX_FILE, KNOWN_AS, ORIGINAL_MANIFEST
from wherry.images.media import (
    CONTAINERD_NAME,
    Descriptor,
    Index,
    Manifest,
    MediaError,
    check_image,
    parse_config,
    parse_manifest,
)
from wherry.images.merged import read_layer, walk
from wherry.images.parts import Parts, objects_of
from wherry.images.pull import FoundImage
from wherry.images.store_db import LayerRow
from wherry.images.taking import row_of

KEEP_SECONDS = 7 * 24 * 3600.0

_HOLDER = "rebuild"
log = logging.getLogger(__name__)


def rebuild_if_lost(parts: Parts) -> None:
    """Fill a database that is new from what is on disk. One process does it, others wait."""
    if not parts.db.rebuild_pending():
        return
    with parts.ingest.working_on(_HOLDER):
        if not parts.db.rebuild_pending():
            return
        for entry in _index_entries(parts):
            try:
                _restore(parts, entry)
            except (WherryError, MediaError) as error:
                log.warning("image %s cannot be restored: %s", entry.digest, error)
        known = {str(row[0]) for row in parts.db.rows("SELECT object FROM image_objects")}
        others = [name for name in parts.on_disk() if name not in known]
        parts.db.lease(_HOLDER, others, KEEP_SECONDS)
        parts.db.rebuilt()


def _index_entries(parts: Parts) -> list[Descriptor]:
    path = parts.layout.root / INDEX_FILE
    try:
        index = parse_manifest(path.read_bytes(), "application/vnd.oci.image.index.v1+json")
    except FileNotFoundError:
        return []
    except MediaError as error:
        log.warning("%s is malformed: %s", path, error)
        return []
    return index.manifests if isinstance(index, Index) else []


def _restore(parts: Parts, entry: Descriptor) -> None:
    notes = entry.annotations or {}
    exported = parts.layout.read(entry.digest)
    digest = notes.get(ORIGINAL_MANIFEST) or entry.digest
    original = parts.layout.cached(digest, parts.limits.config_bytes)
    if original is None:  # the one in OCI's form says the same
        digest, original = entry.digest, exported
    manifest = parse_manifest(original)
    if not isinstance(manifest, Manifest):
        raise StorageError(f"blob {digest} is no manifest")
    raw = parts.layout.read(manifest.config.digest)
    config = parse_config(raw)
    check_image(manifest, config, parts.limits.layers)
    documents = {digest: original, entry.digest: exported, manifest.config.digest: raw}
    found = FoundImage(digest, digest, entry.digest, manifest, config, documents)
    for layer in found.layers:
        _restore_layer(parts, layer)
    places = [_place(text) for text in notes.get(KNOWN_AS, "").split()]
    targets = [at for _, at in places if parts.layout.stored_bytes(at)]
    objects = objects_of(found.layers, [*documents, *targets])
    known_as: list[tuple[str, str] | None] = [*places]
    for place in known_as or [None]:
        parts.db.lease(_HOLDER, objects, KEEP_SECONDS)
        row = row_of(parts, found)
        tag = notes.get(CONTAINERD_NAME)
        parts.db.add_image(row, found.layers, objects, tag, place, holder=_HOLDER)


def _place(text: str) -> tuple[str, str]:
    repository, _, digest = text.partition("@")
    return repository, digest


def _restore_layer(parts: Parts, layer: LayerRow) -> None:
    """The row of an EROFS file that is there. One that is not, or is damaged, is made again when
    somebody needs it."""
    path = parts.layers.path(layer.diff_id)
    if parts.db.layer(layer.diff_id, FORMAT) is not None or not path.exists():
        return
    try:
        with path.open("rb") as file:
            image = ErofsImage(file, path.name)
            root = read_layer(image, 0)
    except WherryError as error:
        log.warning("%s", error)
        return
    if image.uuid != layer_uuid(layer.diff_id).bytes:
        log.warning("%s is another layer's", path.name)
        return
    entries = sum(1 for _ in walk(root))
    done = ConvertedLayer(image.size, size_of(root), entries, 0, root.opaque, layer.diff_id)
    parts.db.add_layer(layer.diff_id, FORMAT, done)
    if not parts.layout.has(layer.blob, layer.blob_size):
        parts.db.note_dropped(layer.blob)
