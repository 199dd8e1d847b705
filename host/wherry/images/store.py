"""The image store: what the engine calls. Synchronous, thread-safe, shared by processes.

Names, ids and removal follow Docker's (classic) image store: an image's id is the digest of its
config; a tag names one image; removing a name untags, removing the last name removes the image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from wherry.errors import Conflict, ImageNotFound, StorageError
from wherry.images.archive_store import Archives
from wherry.images.clients import Auth, Registries
from wherry.images.committing import Commit, commit_image
from wherry.images.convert import OWN_PROCESS_BYTES
from wherry.images.distribution import Distribution
from wherry.images.finding import Finder, no_such_image
from wherry.images.history import HistoryEntry, history_of
from wherry.images.image import Image, image_of
from wherry.images.ingest import Ingest
from wherry.images.layers import LayerFile, LayerStore
from wherry.images.layout import Layout
from wherry.images.media import Manifest, parse_config, parse_manifest
from wherry.images.mirrors import MirroredSource
from wherry.images.names import Removal, is_single_reference, untag_with
from wherry.images.partial import KEEP_SECONDS
from wherry.images.parts import Parts, disk_errors, objects_of
from wherry.images.platform import Platform, default_platform, matches, parse_platform
from wherry.images.progress import PullEvent, Reporter
from wherry.images.pull import (
    DirectorySource,
    ImageLimits,
    RegistrySource,
    find_image,
    limits_of_size,
)
from wherry.images.rebuild import rebuild_if_lost
from wherry.images.reference import Reference, parse_reference, parse_tagged
from wherry.images.refetch import Refetcher
from wherry.images.registry import RegistryClient
from wherry.images.remotes import Remotes
from wherry.images.retry import RetryPolicy
from wherry.images.store_db import LayerRow, StoreDb
from wherry.images.taking import take
from wherry.images.transport import Transport
from wherry.images.trust import default_trust
from wherry.images.upkeep import Upkeep
from wherry.images.whole import find_whole, take_whole
from wherry.osutil import private_directory
from wherry.paths import Home
from wherry.settings import Settings

__all__ = ["Image", "ImageStore"]

log = logging.getLogger(__name__)

Progress = Callable[[PullEvent], None]


class ImageStore:
    """Images, their blobs and their layers, below `home`.

    Args:
        limits: what an image may ask of us.
        retry: how patient registry transfers are.
        platform: what the machine runs by itself; None: Linux on this host's architecture.
        own_process_bytes: as `LayerStore`'s.

    Attributes:
        archives: save, load, import.
        distribution: registries, beside pulling.
        upkeep: sizes, pruning, verification, and what is in images.

    All methods raise StorageError when the disk is full or the store is damaged.
    """

    def __init__(
        self,
        home: Home,
        settings: Settings,
        *,
        limits: ImageLimits | None = None,
        retry: RetryPolicy | None = None,
        platform: Platform | None = None,
        own_process_bytes: int = OWN_PROCESS_BYTES,
    ) -> None:
        self._limits = limits or limits_of_size(settings.image_limit_gib << 30)
        self._transport = Transport(trust=default_trust(settings.registry_ca))
        self._registries = Registries(settings, self._transport, retry)
        with disk_errors():
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
            self._finder = Finder(self._db)
            self._parts = Parts(
                self._root,
                platform or default_platform(),
                self._limits,
                self._ingest,
                self._layout,
                self._db,
                self._layers,
                self._finder,
            )
        self._tidy()
        refetcher = Refetcher(self._parts, self._registries)
        self.archives = Archives(self._parts, refetcher)
        self.upkeep = Upkeep(self._parts, refetcher, self.layer_files)
        self.distribution = Distribution(self._parts, self._registries, refetcher, home)

    def close(self) -> None:
        self._transport.close()
        self._db.close()

    # Finding.

    def resolve(self, ref: str, platform: str | None = None) -> Image:
        """The image of a name, `name@digest`, id or start of an id; a name wins over an id.

        A tag stands for the image that was pulled last, and for those for other platforms that
        came of the same index: the machine's own is taken before any other.

        Args:
            platform: `linux/arm64`; None: the machine's own, else what the tag was pulled for.

        Raises:
            ImageNotFound: there is none, several begin so, or it is for another platform.
            InvalidReference, InvalidInput: neither a name nor an id; not a platform.
        """
        image = self._finder.load(self._finder.find(ref))
        wanted = parse_platform(platform) if platform is not None else self._parts.native
        if matches(wanted, image.platform):
            return image
        if (other := self._finder.for_platform(ref, wanted)) is not None:
            return self._finder.load(other)
        if platform is not None:
            raise ImageNotFound(
                f"image with reference {ref} was found but does not match the specified platform: "
                f"wanted {wanted}, actual: {image.platform}",
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
        with disk_errors():
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
        auth: Auth = None,
        progress: Progress | None = None,
        *,
        all_platforms: bool = False,
    ) -> Image:
        """Fetch an image from its registry. Finished layers stay when a pull fails, for a day.

        Args:
            ref: a name; `latest` without a tag or digest. With a digest the tag is not looked at.
            platform: `linux/arm64`; None: this machine's.
            auth: credentials, or the fields of Docker's X-Registry-Auth; None: those in Docker's
                config.json; `Credentials()`: none.
            progress: called from several threads, one at a time; what it raises ends the pull.
            all_platforms: keep all that the name's index points to, for a push of the whole.

        Raises:
            ImageNotFound, Unauthorized, RegistryError, ContentMismatch, InvalidReference,
            InvalidInput, StorageError.
        """
        reference = parse_reference(ref).with_default_tag()
        wanted = parse_platform(platform) if platform is not None else None
        if reference.is_local:
            raise no_such_image(reference)
        reporter = Reporter(progress)
        client = self._registries.client(reference.domain, auth, reporter.stop)
        shown = reference.digest or reference.tag or ""
        with disk_errors():
            reporter.say(f"Pulling from {reference.path}", shown)
            source = self._source(client, reference, reporter)
            native = self._parts.native
            found = find_image(source, shown, wanted, self._layout, self._limits, native)
            tag = str(reference) if reference.digest is None else None
            digest = (reference.name, found.target_digest)
            if all_platforms:
                whole = find_whole(self._parts, found, source)
                found = replace(found, documents={**found.documents, **whole.documents})
            is_new = take(self._parts, found, source, tag, digest, reporter)
            if all_platforms:
                take_whole(self._parts, whole, found, source, reporter)
            if is_new:
                blobs = [found.id, *(layer.blob for layer in found.layers)]
                Remotes(self._db).note_sources(reference.name, blobs)
            reporter.say(f"Digest: {found.target_digest}")
            news = "Downloaded newer image" if is_new else "Image is up to date"
            reporter.say(f"Status: {news} for {reference.familiar}")
        return self._finder.load(found.id)

    def import_layout(
        self,
        directory: Path,
        name: str,
        progress: Progress | None = None,
        *,
        platform: str | None = None,
    ) -> Image:
        """Tag the image of an OCI layout on disk; quick when it is stored already.

        Args:
            platform: of several, or that it must be for; None: the machine's own.

        Raises:
            InvalidInput: not such a layout. ContentMismatch: it is damaged. InvalidReference.
        """
        reference = parse_tagged(name)
        wanted = parse_platform(platform) if platform is not None else None
        with disk_errors():
            source = DirectorySource(directory)
            native = self._parts.native
            found = find_image(source, "", wanted, self._layout, self._limits, native)
            take(self._parts, found, source, str(reference), None, Reporter(progress))
        return self._finder.load(found.id)

    def commit(
        self, parent: Image | None, chunks: Iterator[bytes], new: Commit, name: str | None = None
    ) -> Image:
        """Make an image of `parent` (which somebody holds) and one more layer, whose tar `chunks`
        yields.

        Raises:
            InvalidInput: the layer is damaged or hostile, or one too many. InvalidReference.
        """
        tag = str(parse_tagged(name)) if name is not None else None
        with disk_errors():
            image_id = commit_image(self._parts, parent, chunks, new, tag)
        return self._finder.load(image_id)

    # Naming and removing.

    def tag(self, ref: str, name: str) -> None:
        """Give an image another name; the name moves when another image has it.

        Raises:
            ImageNotFound, InvalidReference.
        """
        target = str(parse_tagged(name))
        named = self._finder.named(ref)
        digest = named.digest if named is not None else None
        self._db.set_tag(target, self._finder.find(ref), digest)
        with disk_errors():
            self._parts.settle()

    def remove(self, ref: str, force: bool = False) -> Sequence[Removal]:
        """Remove a name, and the image with its last name. Whether containers use the image is
        for the caller to ask first.

        Args:
            ref: a name: it is untagged; an id: the image goes with all its names.
            force: by id, also when it has names in several repositories or several tags.

        Raises:
            ImageNotFound. Conflict: by id, with several names, without force.
        """
        image_id = self._finder.find(ref)
        names = self._finder.names_of(image_id)
        by_name = self._finder.named(ref)
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
            self._parts.noting_removal(image_id, lambda: self._db.remove_image(image_id))
            removals.append(Removal(deleted=image_id))
        with disk_errors():
            removals += [Removal(deleted=layer) for layer in self._parts.settle().layers]
        return removals

    # Keeping.

    def hold(self, holder: str, image: Image) -> None:
        """Keep an image's layers and blobs for `holder` (a container), even when it is removed.

        Raises:
            ImageNotFound: it was removed since it was found.
        """
        rows = self._db.layers_of(image.id)
        if not rows and image.diff_ids:
            if not self._layout.stored_bytes(image.manifest_digest):
                raise ImageNotFound(f"No such image: {image.id}")
            rows = list(self._rows_from_blobs(image))
        self._db.lease(holder, objects_of(rows, [image.id, image.manifest_digest]), None)
        # Looked at only now, when nobody may remove them any more.
        if not all(self._layers.find(it.diff_id) or self._layout.has(it.blob, it.blob_size)
                   for it in rows):  # fmt: skip
            self.release(holder)
            raise ImageNotFound(f"No such image: {image.id}")

    def hold_manifest(self, holder: str, manifest_digest: str) -> None:
        """As `hold`, of an image that is known by its manifest only.

        Raises:
            StorageError: the manifest or its config is not there, or damaged.
        """
        manifest = parse_manifest(self._layout.read(manifest_digest))
        if not isinstance(manifest, Manifest):
            raise StorageError(f"blob {manifest_digest} is no manifest")
        config = parse_config(self._layout.read(manifest.config.digest))
        pairs = zip(manifest.layers, config.diff_ids, strict=True)
        rows = [LayerRow(diff_id, layer.digest, layer.size) for layer, diff_id in pairs]
        self._db.lease(holder, objects_of(rows, [manifest.config.digest, manifest_digest]), None)

    def release(self, holder: str) -> None:
        """What `holder` kept may go."""
        self._db.release(holder)
        with disk_errors():
            self._parts.settle()

    def holders(self) -> Sequence[str]:
        """Who keeps something."""
        return self._db.lease_holders()

    # Inside.

    def _tidy(self) -> None:
        """What an earlier process left to do. A disk that takes nothing can still be read."""
        try:
            with disk_errors():
                rebuild_if_lost(self._parts)
                self._parts.settle()
                self._ingest.sweep_partials(KEEP_SECONDS)
        except StorageError as error:
            log.warning("the image store stays as it is for now: %s", error)

    def _source(
        self, client: RegistryClient, reference: Reference, reporter: Reporter
    ) -> MirroredSource:
        """Where to pull from: the mirrors of the registry, then itself."""
        origin = RegistrySource(client, reference.path, reference.familiar)
        mirrors = self._registries.mirrors(reference.domain, reporter.stop)
        places = [RegistrySource(it, reference.path, reference.familiar) for it in mirrors]
        return MirroredSource(places, origin)

    def _rows_from_blobs(self, image: Image) -> Sequence[LayerRow]:
        """The layers of an image that is no longer listed, but held."""
        manifest = parse_manifest(self._layout.read(image.manifest_digest))
        if not isinstance(manifest, Manifest):
            raise StorageError(f"blob {image.manifest_digest} is no manifest")
        pairs = zip(manifest.layers, image.diff_ids, strict=True)
        return [LayerRow(diff_id, layer.digest, layer.size) for layer, diff_id in pairs]
