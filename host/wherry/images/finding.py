"""From what a user types to an image in the store: names, `name@digest`, ids or their start."""

from __future__ import annotations

from collections.abc import Sequence

from wherry.errors import ImageNotFound, InvalidReference
from wherry.images.image import Image, image_of
from wherry.images.names import references
from wherry.images.platform import Platform, choose, normalise
from wherry.images.reference import LOCAL_DOMAIN, Reference, id_prefix, parse_reference
from wherry.images.store_db import StoreDb


class Finder:
    """Looks images up in `db`."""

    def __init__(self, db: StoreDb) -> None:
        self._db = db

    def find(self, ref: str) -> str:
        """The id of an image; a name wins over an id. Raises ImageNotFound, InvalidReference."""
        named = self.named(ref)
        if named is not None:
            return self.target(named) or ""
        prefix = id_prefix(ref)
        if prefix is None:
            raise no_such_image(parse_reference(ref).with_default_tag())
        found = self._db.ids_starting(prefix)
        if len(found) == 1:
            return found[0]
        raise ImageNotFound(
            f"No such image: {ref}",
            hint="several ids begin so: give more digits" if found else "list them: wherry images",
        )

    def named(self, ref: str) -> Reference | None:
        """`ref` as a name that some image has, else None."""
        try:
            reference = parse_reference(ref).with_default_tag()
        except InvalidReference:
            if id_prefix(ref) is None:
                raise
            return None
        if reference.digest is not None:
            reference = reference.with_digest(reference.digest)
        return reference if self.target(reference) is not None else None

    def for_platform(self, ref: str, wanted: Platform) -> str | None:
        """The id of the image for `wanted` under a tag that was last pulled for another platform:
        both are of the same index. None: it is not here, or `ref` is no tag."""
        named = self.named(ref)
        if named is None or named.digest is not None:
            return None
        log = self._db.tag_log(str(named))
        fitting = []
        for change in log:
            if change.image_id is None or change.digest != log[0].digest:
                continue
            row = self._db.image(change.image_id)
            if row is not None:
                fitting.append((row.id, normalise(row.os, row.architecture, row.variant)))
        found = choose(wanted, fitting, lambda pair: pair[1])
        return found[0] if found else None

    def target(self, reference: Reference) -> str | None:
        """The id of the image that has this name."""
        if reference.digest is not None:
            return self._db.digest_target(reference.name, reference.digest)
        return self._db.tag_target(str(reference))

    def repository(self, ref: str) -> list[tuple[str, str]]:
        """All tags of a repository as (image id, full tag); none when `ref` is not one's bare name,
        or there are no tags in it."""
        try:
            reference = parse_reference(ref)
        except InvalidReference:
            return []
        if reference.tag is not None or reference.digest is not None:
            return []
        return self._db.tags_in(reference.name)

    def names_of(self, image_id: str) -> Sequence[Reference]:
        return references(*self._db.names_of(image_id))

    def load(self, image_id: str) -> Image:
        """Raises ImageNotFound: it was removed since it was found."""
        row = self._db.image(image_id)
        if row is None:
            raise ImageNotFound(f"No such image: {image_id}")
        return image_of(row, *self._db.names_of(image_id))


def no_such_image(reference: Reference) -> ImageNotFound:
    if reference.is_local:
        hint = (
            f"names under {LOCAL_DOMAIN}/ are made on this machine: no registry is asked for them"
        )
    else:
        hint = f"fetch it: wherry pull {reference.familiar}"
    return ImageNotFound(f"No such image: {reference.familiar}", hint=hint)
