"""The whole route table, in one place and in order: the first match wins."""

from __future__ import annotations

from wherry.api import containers, images, machine, system
from wherry.api.http import Routes

ROUTES = Routes()

for _method, _pattern, _handler in (
    *system.TABLE,
    *containers.TABLE,
    *images.TABLE,
    *machine.TABLE,
    *system.POLITE,
    *system.REST,
):
    ROUTES.add(_method, _pattern, _handler)
