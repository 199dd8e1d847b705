"""What the store says of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from wherry.images.media import parse_config
from wherry.images.names import references
from wherry.images.platform import Platform, normalise
from wherry.images.store_db import ImageRow


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the store.

    Attributes:
        id: the config's digest.
        tags: familiar names (`debian:13`), sorted.
        digests: `debian@sha256:…`, of what was pulled (an index or a manifest).
        created_ns: nanoseconds since the epoch; 0 when it does not say.
        variant: "" for the architecture's default.
        size: bytes of the files in its layers.
        config: the OCI image config's "config".
        diff_ids: digests of the uncompressed layers, lowest first.
        raw_config: the config as it was pulled.
    """

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    created_ns: int
    architecture: str
    os: str
    variant: str
    size: int
    config: Mapping[str, Any] = field(repr=False)
    diff_ids: tuple[str, ...] = field(repr=False)
    manifest_digest: str
    raw_config: bytes = field(repr=False)

    @property
    def platform(self) -> Platform:
        return normalise(self.os, self.architecture, self.variant)


_parsed = lru_cache(maxsize=2048)(parse_config)
"""A config never changes, and a listing needs every image's."""


def image_of(row: ImageRow, tags: Sequence[str], digests: Sequence[tuple[str, str]]) -> Image:
    """An image from its row, its full tags and its (repository, digest) pairs."""
    config = _parsed(row.raw_config)
    names = references(tags, digests)
    return Image(
        id=row.id,
        tags=tuple(name.familiar for name in names if name.digest is None),
        digests=tuple(name.familiar for name in names if name.digest is not None),
        created_ns=row.created_ns,
        architecture=row.architecture,
        os=row.os,
        variant=row.variant,
        size=row.size,
        config=config.config,
        diff_ids=config.diff_ids,
        manifest_digest=row.manifest_digest,
        raw_config=row.raw_config,
    )
