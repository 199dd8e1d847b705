"""Looking after the store: its size, what may go, what is damaged, what is in images. Thread-safe.

From `ImageStore.upkeep`. Synchronous.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from wherry.errors import NotFound
from wherry.images.comparing import Difference, MergedImage, compare
from wherry.images.erofs.reader import ErofsImage
from wherry.images.exploring import Exploration, explore
from wherry.images.glance import glance
from wherry.images.image import Image
from wherry.images.layers import LayerFile
from wherry.images.media import parse_config
from wherry.images.parts import Parts, disk_errors
from wherry.images.progress import PullEvent, Reporter
from wherry.images.pruning import Pruned, prune_blobs, prune_images
from wherry.images.reference import parse_tagged
from wherry.images.refetch import Refetcher
from wherry.images.store_db import TagChange
from wherry.images.usage import Usage, layer_sizes, shared_sizes, usage
from wherry.images.verifying import Verified, verify

Progress = Callable[[PullEvent], None]
LayerFiles = Callable[[Image], Sequence[LayerFile]]


class Upkeep:
    """Upkeep of one store. `layer_files`: makes all of an image's EROFS files present."""

    def __init__(self, parts: Parts, refetcher: Refetcher, layer_files: LayerFiles) -> None:
        self._parts = parts
        self._refetcher = refetcher
        self._layer_files = layer_files

    def layer_sizes(self) -> Mapping[str, int]:
        """See `usage.layer_sizes`."""
        return layer_sizes(self._parts)

    def shared_sizes(self) -> Mapping[str, int]:
        """Of every image id: bytes in layers that other images have, too; none: not listed."""
        return shared_sizes(self._parts)

    def usage(self) -> Usage:
        """What all of it takes. Looks at every file."""
        with disk_errors():
            return usage(self._parts)

    def log(self, name: str) -> Sequence[TagChange]:
        """What a tag pointed to, and when; the newest change first.

        Raises:
            NotFound: there never was such a tag. InvalidReference.
        """
        reference = parse_tagged(name)
        found = self._parts.db.tag_log(str(reference))
        if not found:
            raise NotFound(f"there never was a tag {reference.familiar}", hint="wherry images")
        return found

    def prune(
        self, images: Sequence[Image], wanted: Callable[[Image], bool], *, tagged: bool
    ) -> Pruned:
        """Remove the `wanted` ones of `images` that nobody uses, `tagged` ones too or not, and what
        killed processes left."""
        with disk_errors():
            return prune_images(self._parts, images, wanted, tagged=tagged)

    def prune_blobs(self) -> Pruned:
        """Give up blobs that a registry has, too, and that no machine needs."""
        with disk_errors():
            return prune_blobs(self._parts)

    def glance(self) -> list[str]:
        """What is missing or cut off, in words; quick, `verify` is thorough."""
        with disk_errors():
            return glance(self._parts)

    def verify(
        self,
        refs: Sequence[str] = (),
        *,
        repair: bool = False,
        progress: Progress | None = None,
    ) -> Verified:
        """Check images, or everything that is stored. Raises ImageNotFound for a name."""
        ids = [self._parts.finder.find(ref) for ref in refs] if refs else None
        with disk_errors():
            return verify(self._parts, self._refetcher, ids, Reporter(progress), repair=repair)

    def explore(self, ref: str) -> Exploration:
        """What each layer of an image does. Raises ImageNotFound, StorageError, InvalidInput."""
        image = self._parts.finder.load(self._parts.finder.find(ref))
        commands = _commands(image)
        with disk_errors(), self._open_layers(image) as layers:
            return explore(
                [
                    (diff_id, command, layer)
                    for (diff_id, layer), command in zip(layers, commands, strict=True)
                ]
            )

    def compare(self, a: str, b: str) -> Sequence[Difference]:
        """What differs between two images. Raises as `explore`."""
        finder = self._parts.finder
        one, other = (finder.load(finder.find(ref)) for ref in (a, b))
        with disk_errors(), self._open_layers(one) as ours, self._open_layers(other) as theirs:
            return list(compare(MergedImage(ours), MergedImage(theirs)))

    @contextmanager
    def _open_layers(self, image: Image) -> Iterator[list[tuple[str, ErofsImage]]]:
        """All layers, lowest first. Open files are kept also by a system that removes them."""
        self._layer_files(image)
        with ExitStack() as stack:
            found = []
            for diff_id in image.diff_ids:
                path = self._parts.layers.path(diff_id)
                file = stack.enter_context(path.open("rb"))
                found.append((diff_id, ErofsImage(file, path.name)))
            yield found


def _commands(image: Image) -> list[str]:
    """The commands that made an image's layers, lowest first; "" where it does not say."""
    config = parse_config(image.raw_config)
    made = [step.created_by or "" for step in config.history if not step.empty_layer]
    count = len(image.diff_ids)
    return [*made, *[""] * count][:count]
