"""Which names go when an image is removed: Docker's rules (daemon/images/image_delete.go). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from wherry.images.reference import Reference, parse_reference


@dataclass(frozen=True, slots=True)
class Removal:
    """One line of `docker rmi`: either a name that is gone or an id."""

    untagged: str | None = None
    deleted: str | None = None

    def as_json(self) -> dict[str, str]:
        """As the Engine API has it."""
        if self.untagged is not None:
            return {"Untagged": self.untagged}
        return {"Deleted": self.deleted or ""}


def is_single_reference(names: Sequence[Reference]) -> bool:
    """Whether an image with these names may be removed by its id without force: at most one tag,
    and digests only of that tag's repository (or of one repository)."""
    tags = [name for name in names if name.digest is None]
    repositories = {name.name for name in names}
    return len(tags) <= 1 and len(repositories) <= 1


def untag_with(gone: Reference, names: Sequence[Reference]) -> list[Reference]:
    """All names that go when `gone` is removed by name: when that was the repository's last tag,
    the repository's digests go with it."""
    rest = [name for name in names if name != gone]
    if gone.digest is not None:
        return [gone]
    if any(name.digest is None and name.name == gone.name for name in rest):
        return [gone]
    return [gone, *(name for name in rest if name.name == gone.name)]


def references(tags: Sequence[str], digests: Sequence[tuple[str, str]]) -> list[Reference]:
    """The names of an image, from their full forms in the database."""
    tagged = [_parsed(tag) for tag in tags]
    return tagged + [_parsed(f"{repository}@{digest}") for repository, digest in digests]


_parsed = lru_cache(maxsize=4096)(parse_reference)
