"""`docker history` of an image config. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wherry.images.media import ImageConfig, parse_time

MISSING_ID = "<missing>"
"""Docker's id of a build step that has no image of its own."""


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One step that made an image.

    Attributes:
        id: the image's for the newest step, else `<missing>`.
        created_ns: nanoseconds since the epoch.
        created_by: the command.
        size: bytes of the files that it added; 0 for a step without a layer.
        comment: the builder's.
        empty_layer: the step changed only the config.
    """

    id: str
    created_ns: int
    created_by: str
    size: int
    comment: str
    empty_layer: bool


def history_of(
    image_id: str, config: ImageConfig, sizes: Mapping[str, int]
) -> Sequence[HistoryEntry]:
    """The steps, the newest first.

    Layers that the config's history does not account for get a step of their own, with nothing
    known of it.

    Args:
        sizes: bytes of a layer's files, by diffID.
    """
    layers = iter(config.diff_ids)
    steps: list[HistoryEntry] = []
    for record in config.history:
        empty = bool(record.empty_layer)
        diff_id = None if empty else next(layers, None)
        steps.append(
            HistoryEntry(
                id=MISSING_ID,
                created_ns=parse_time(record.created),
                created_by=record.created_by or "",
                size=sizes.get(diff_id, 0) if diff_id else 0,
                comment=record.comment or "",
                empty_layer=empty,
            )
        )
    for diff_id in layers:
        size = sizes.get(diff_id, 0)
        steps.append(HistoryEntry(MISSING_ID, config.created_ns, "", size, "", False))
    steps.reverse()
    if steps:
        newest = steps[0]
        steps[0] = HistoryEntry(
            image_id,
            newest.created_ns,
            newest.created_by,
            newest.size,
            newest.comment,
            newest.empty_layer,
        )
    return steps
