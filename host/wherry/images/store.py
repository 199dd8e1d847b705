"""The image store: what the engine calls. Synchronous, thread-safe, shared by processes.

Names, ids and removal follow Docker's (classic) image store: an image's id is the digest of its
config; a tag names one image; removing a name untags, removing the last name removes the image.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wherry.errors import Conflict, ImageNotFound, InvalidReference, StorageError
from wherry.images.auth import Credentials, credentials_from_fields
from wherry.images.convert import OWN_PROCESS_BYTES
from wherry.images.history import HistoryEntry, history_of
from wherry.images.image import Image, image_of
from wherry.images.ingest import Ingest
from wherry.images.layers import EROFS_OBJECT, LayerFile, LayerStore
from wherry.images.layout import Exported, Layout
from wherry.images.media import Manifest, parse_config, parse_manifest
from wherry.images.names import Removal, is_single_reference, references, untag_with
from wherry.images.platform import matches, parse_platform
from wherry.images.progress import PullEvent, Reporter
from wherry.images.pull import (
    DirectorySource,
    FoundImage,
    ImageLimits,
    ImageSource,
    RegistrySource,
    find_image,
)
from wherry.images.reference import (
    LOCAL_DOMAIN,
    Reference,
    id_prefix,
    parse_reference,
    parse_tagged,
)
from wherry.images.registry import RegistryClient
from wherry.images.retry import RetryPolicy
from wherry.images.store_db import ImageRow, LayerRow, StoreDb
from wherry.images.transport import Transport
from wherry.images.trust import default_trust
from wherry.logins import Logins
from wherry.osutil import private_directory
from wherry.paths import Home
from wherry.settings import Settings

__all__ = ["Image", "ImageStore"]

PULL_LEASE_SECONDS = 24 * 3600.0
"""How long the finished blobs of a pull that failed wait for the next try."""

Progress = Callable[[PullEvent], None]


class ImageStore:
    """Images, their blobs and their layers, below `home`.

    Args:
        limits: what an image may ask of us.
        retry: how patient registry transfers are.
        own_process_bytes: as `LayerStore`'s.

    All methods raise StorageError when the disk is full or the store is damaged.
    """

    def __init__(
        self,
        home: Home,
        settings: Settings,
        *,
        limits: ImageLimits | None = None,
        retry: RetryPolicy | None = None,
        own_process_bytes: int = OWN_PROCESS_BYTES,
    ) -> None:
        self._settings = settings
        self._limits = limits or ImageLimits()
        self._retry = retry
        self._transport = Transport(trust=default_trust(settings.registry_ca))
        with _disk_errors():
            self._root = private_directory(home.root)
            self._ingest = Ingest(home.ingest)
            self._layout = Layout(home.store, self._ingest)
            self._db = StoreDb(home.store_db)
            self._layers = LayerStore(
                home.layers,
                self._db,
                self._layout,
                self._ingest,
                max_bytes=self._limits.layer_bytes,
                own_process_bytes=own_process_bytes,
            )
            self._settle()

    def close(self) -> None:
        self._transport.close()
        self._db.close()

    # Finding.

    def resolve(self, ref: str, platform: str | None = None) -> Image:
        """The image of a name, `name@digest`, id or start of an id; a name wins over an id.

        Raises:
            ImageNotFound: there is none, several begin so, or it is for another platform.
            InvalidReference, InvalidInput: neither a name nor an id; not a platform.
        """
        image = self._load(self._find(ref))
        if platform is not None and not matches(parse_platform(platform), image.platform):
            raise ImageNotFound(
                f"image {ref} is for {image.platform}, not for {parse_platform(platform)}",
                hint=f"pull the other one: wherry pull --platform {platform} {ref}",
            )
        return image

    def list(self) -> Sequence[Image]:
        """All images, the newest first."""
        tags, digests = self._db.names()
        return [
            image_of(row, tags.get(row.id, []), digests.get(row.id, []))
            for row in self._db.images()
        ]

    def history(self, image: Image) -> Sequence[HistoryEntry]:
        """The steps that made an image, the newest first."""
        found = {diff_id: self._layers.find(diff_id) for diff_id in image.diff_ids}
        sizes = {diff_id: known.data_bytes for diff_id, known in found.items() if known}
        return history_of(image.id, parse_config(image.raw_config), sizes)

    def layer_files(self, image: Image, progress: Progress | None = None) -> Sequence[LayerFile]:
        """The EROFS files to stack for an image, lowest first; missing ones are made again.

        These are not always all of `image.diff_ids`: see `LayerStore.files`.

        Raises:
            StorageError: a blob is missing. ContentMismatch: one is damaged.
        """
        with _disk_errors():
            missing = [d for d in image.diff_ids if self._layers.find(d) is None]
            if missing:
                rows = self._db.layers_of(image.id) or self._rows_from_blobs(image)
                self._layers.ensure(
                    [row for row in rows if row.diff_id in missing], None, Reporter(progress)
                )
            return self._layers.files(image.diff_ids)

    # Getting.

    def pull(
        self,
        ref: str,
        platform: str | None = None,
        auth: Credentials | Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Image:
        """Fetch an image from its registry. Finished layers stay when a pull fails, for a day.

        Args:
            ref: a name; `latest` without a tag or digest. With a digest the tag is not looked at.
            platform: `linux/arm64`; None: this machine's.
            auth: credentials, or the fields of Docker's X-Registry-Auth; None: those in Docker's
                config.json; `Credentials()`: none.
            progress: called from several threads, one at a time; what it raises ends the pull.

        Raises:
            ImageNotFound, Unauthorized, RegistryError, ContentMismatch, InvalidReference,
            InvalidInput, StorageError.
        """
        reference = parse_reference(ref).with_default_tag()
        wanted = parse_platform(platform) if platform is not None else None
        if reference.is_local:
            raise _no_such_image(reference)
        reporter = Reporter(progress)
        client = RegistryClient(
            reference.domain,
            _credentials(reference.domain, auth),
            transport=self._transport,
            insecure=self._settings.insecure_registries,
            policy=self._retry,
            stop=reporter.stop,
        )
        shown = reference.digest or reference.tag or ""
        with _disk_errors():
            reporter.say(f"Pulling from {reference.familiar_name}", shown)
            source = RegistrySource(client, reference.path, reference.familiar)
            found = find_image(source, shown, wanted, self._layout, self._limits)
            tag = str(reference) if reference.digest is None else None
            digest = (reference.name, found.target_digest)
            is_new = self._take(found, source, tag, digest, reporter)
            reporter.say(f"Digest: {found.target_digest}")
            news = "Downloaded newer image" if is_new else "Image is up to date"
            reporter.say(f"Status: {news} for {reference.familiar}")
        return self._load(found.id)

    def import_layout(self, directory: Path, name: str, progress: Progress | None = None) -> Image:
        """Tag the image of an OCI layout on disk; quick when it is stored already.

        Raises:
            InvalidInput: not such a layout. ContentMismatch: it is damaged. InvalidReference.
        """
        reference = parse_tagged(name)
        with _disk_errors():
            source = DirectorySource(directory)
            found = find_image(source, "", None, self._layout, self._limits)
            self._take(found, source, str(reference), None, Reporter(progress))
        return self._load(found.id)

    # Naming and removing.

    def tag(self, ref: str, name: str) -> None:
        """Give an image another name; the name moves when another image has it.

        Raises:
            ImageNotFound, InvalidReference.
        """
        target = str(parse_tagged(name))
        self._db.set_tag(target, self._find(ref))
        with _disk_errors():
            self._settle()

    def remove(self, ref: str, force: bool = False) -> Sequence[Removal]:
        """Remove a name, and the image with its last name. Whether containers use the image is
        for the caller to ask first.

        Args:
            ref: a name: it is untagged; an id: the image goes with all its names.
            force: by id, also when it has names in several repositories or several tags.

        Raises:
            ImageNotFound. Conflict: by id, with several names, without force.
        """
        image_id = self._find(ref)
        names = self._names_of(image_id)
        by_name = self._named(ref)
        if by_name is None:
            if len(names) > 1 and not is_single_reference(names) and not force:
                raise Conflict(
                    f"unable to delete {image_id.removeprefix('sha256:')[:12]} (must be forced) - "
                    "image is referenced in multiple repositories",
                    hint="remove its names one by one, or use --force",
                )
            going = names
        else:
            going = untag_with(by_name, names)
        removals = [Removal(untagged=name.familiar) for name in going]
        if len(going) < len(names):
            self._db.remove_names(
                [str(name) for name in going if name.digest is None],
                [(name.name, name.digest) for name in going if name.digest is not None],
            )
        else:
            self._db.remove_image(image_id)
            removals.append(Removal(deleted=image_id))
        with _disk_errors():
            removals += [Removal(deleted=layer) for layer in self._settle()]
        return removals

    # Keeping.

    def hold(self, holder: str, image: Image) -> None:
        """Keep an image's layers and blobs for `holder` (a container), even when it is removed."""
        rows = self._db.layers_of(image.id) or self._rows_from_blobs(image)
        self._db.lease(holder, _objects(rows, [image.id, image.manifest_digest]), None)

    def release(self, holder: str) -> None:
        """What `holder` kept may go."""
        self._db.release(holder)
        with _disk_errors():
            self._settle()

    def holders(self) -> Sequence[str]:
        """Who keeps something."""
        return self._db.lease_holders()

    # Inside.

    def _find(self, ref: str) -> str:
        """The id of an image."""
        named = self._named(ref)
        if named is not None:
            return self._target(named) or ""
        prefix = id_prefix(ref)
        if prefix is None:
            raise _no_such_image(parse_reference(ref).with_default_tag())
        found = self._db.ids_starting(prefix)
        if len(found) == 1:
            return found[0]
        raise ImageNotFound(
            f"No such image: {ref}",
            hint="several ids begin so: give more digits" if found else "list them: wherry images",
        )

    def _named(self, ref: str) -> Reference | None:
        """`ref` as a name that some image has, else None."""
        try:
            reference = parse_reference(ref).with_default_tag()
        except InvalidReference:
            if id_prefix(ref) is None:
                raise
            return None
        if reference.digest is not None:
            reference = reference.with_digest(reference.digest)
        return reference if self._target(reference) is not None else None

    def _target(self, reference: Reference) -> str | None:
        if reference.digest is not None:
            return self._db.digest_target(reference.name, reference.digest)
        return self._db.tag_target(str(reference))

    def _names_of(self, image_id: str) -> Sequence[Reference]:
        tags, digests = self._db.names()
        return references(tags.get(image_id, []), digests.get(image_id, []))

    def _load(self, image_id: str) -> Image:
        row = self._db.image(image_id)
        if row is None:  # removed since it was found
            raise ImageNotFound(f"No such image: {image_id}")
        tags, digests = self._db.names()
        return image_of(row, tags.get(image_id, []), digests.get(image_id, []))

    def _take(
        self,
        found: FoundImage,
        source: ImageSource,
        tag: str | None,
        digest: tuple[str, str] | None,
        reporter: Reporter,
    ) -> bool:
        """Store an image; False when nothing had to be done."""
        if self._is_stored(found, tag, digest):
            for layer in found.layers:
                reporter.layer(layer.blob, "Already exists")
            return False
        self._check_space(found)
        # Pulls of one image share a lease, so that the one that succeeds also ends those of failed
        # and killed ones. Another that is still at work then starts over, which is quick.
        holder = f"pull:{found.manifest_digest}"
        objects = _objects(found.layers, found.documents)
        stored = False
        while not stored:
            self._db.lease(holder, objects, PULL_LEASE_SECONDS)
            self._layers.ensure(found.layers, source, reporter)
            for document in found.documents.values():
                self._layout.write(document)
            row = self._row(found)
            stored = self._db.add_image(row, found.layers, objects, tag, digest, holder=holder)
        self._settle()
        return True

    def _row(self, found: FoundImage) -> ImageRow:
        sizes = [self._layers.find(layer.diff_id) for layer in found.layers]
        platform = found.config.platform
        return ImageRow(
            id=found.id,
            manifest_digest=found.manifest_digest,
            export_digest=found.export_digest,
            export_size=len(found.documents[found.export_digest]),
            os=platform.os,
            architecture=platform.architecture,
            variant=platform.variant,
            created_ns=found.config.created_ns,
            size=sum(known.data_bytes for known in sizes if known),
            raw_config=found.documents[found.id],
        )

    def _is_stored(
        self, found: FoundImage, tag: str | None, digest: tuple[str, str] | None
    ) -> bool:
        row = self._db.image(found.id)
        return (
            row is not None
            and row.manifest_digest == found.manifest_digest
            and (tag is None or self._db.tag_target(tag) == found.id)
            and (digest is None or self._db.digest_target(*digest) == found.id)
            and all(self._layers.is_present(layer) for layer in found.layers)
            and all(self._layout.has(it, len(data)) for it, data in found.documents.items())
        )

    def _check_space(self, found: FoundImage) -> None:
        distinct = {layer.blob: layer for layer in found.layers}.values()
        needed = sum(it.blob_size for it in distinct if not self._layers.is_present(it))
        free = shutil.disk_usage(self._root).free
        if needed > free:
            raise StorageError(
                f"the image needs more than {needed >> 20} MiB, {free >> 20} MiB are free "
                f"in {self._root}",
                hint=_FULL_HINT,
            )

    def _rows_from_blobs(self, image: Image) -> Sequence[LayerRow]:
        """The layers of an image that is no longer listed, but held."""
        manifest = parse_manifest(self._layout.read(image.manifest_digest))
        if not isinstance(manifest, Manifest):
            raise StorageError(f"blob {image.manifest_digest} is no manifest")
        pairs = zip(manifest.layers, image.diff_ids, strict=True)
        return [LayerRow(diff_id, layer.digest, layer.size) for layer, diff_id in pairs]

    def _settle(self) -> Sequence[str]:
        """After a change: remove what nobody needs, export the tags. The removed layers."""

        def remove(name: str) -> bool:
            if name.startswith(EROFS_OBJECT):
                return self._layers.remove(name.removeprefix(EROFS_OBJECT))
            return self._layout.remove(name)

        gone = self._db.collect(remove)
        self._db.export(self._export)
        return [name.removeprefix(EROFS_OBJECT) for name in gone if name.startswith(EROFS_OBJECT)]

    def _export(self) -> None:
        tags, _ = self._db.names()
        entries = [
            Exported(
                parse_reference(name).familiar,
                name,
                row.export_digest,
                row.export_size,
                (row.os, row.architecture, row.variant),
            )
            for row in self._db.images()
            for name in tags.get(row.id, [])
        ]
        self._layout.export_index(entries)


_FULL_HINT = "free some space, or set WHERRY_HOME to a directory on another disk"


@contextmanager
def _disk_errors() -> Iterator[None]:
    """What the operating system says about our own files, as the user's error."""
    try:
        yield
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageError(
            f"the image store cannot be written{place}: {error.strerror or error}",
            hint=_FULL_HINT if full else None,
        ) from error


def _objects(layers: Sequence[LayerRow], documents: Iterable[str]) -> list[str]:
    blobs = {layer.blob for layer in layers} | set(documents)
    return sorted(blobs | {EROFS_OBJECT + layer.diff_id for layer in layers})


def _credentials(domain: str, auth: Credentials | Mapping[str, Any] | None) -> Credentials:
    if auth is None:
        return Logins().find(domain)
    if isinstance(auth, Credentials):
        return auth
    return credentials_from_fields(auth, "X-Registry-Auth")


def _no_such_image(reference: Reference) -> ImageNotFound:
    if reference.is_local:
        hint = (
            f"names under {LOCAL_DOMAIN}/ are made on this machine: no registry is asked for them"
        )
    else:
        hint = f"fetch it: wherry pull {reference.familiar}"
    return ImageNotFound(f"No such image: {reference.familiar}", hint=hint)
