"""How big containers are: what they wrote, which the guest counts, and their image under it.

What runs in a machine that is off is not known, and no machine is started for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wherry.engine.guest import Guest, read_sizes
from wherry.engine.model import Container
from wherry.engine.ports import StorePort
from wherry.errors import WherryError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of files, as long as they are.

    Attributes:
        written: in its writable layer; None: not known, since the machine is off.
        root: that and all layers of its image.
    """

    written: int | None
    root: int


class Sizes:
    """The sizes of one machine's containers."""

    def __init__(self, guest: Guest, store: StorePort) -> None:
        self._guest = guest
        self._store = store

    async def of(self, containers: Sequence[Container]) -> Mapping[str, Size]:
        """By id. One call to the guest for all of them."""
        written, layers = await asyncio.gather(
            self._written(containers), asyncio.to_thread(self._store.upkeep.layer_sizes)
        )
        found = {}
        for container in containers:
            own = None if written is None else written.get(container.id, 0)
            image = sum(layers.get(diff_id, 0) for diff_id in container.layers)
            found[container.id] = Size(own, image + (own or 0))
        return found

    async def _written(self, containers: Sequence[Container]) -> dict[str, int] | None:
        link = self._guest.steady_link
        if link is None:
            return None
        ids = [container.id for container in containers]
        try:
            return await read_sizes(link, "container.usage", {"ids": ids}) if ids else {}
        except WherryError as error:
            log.warning("the sizes of containers are not known: %s", error)
            return None
