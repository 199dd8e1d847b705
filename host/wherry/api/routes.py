"""The whole route table, in one place and in order: the first match wins."""

from __future__ import annotations

from wherry.api import (
    archives,
    bootstrap,
    containers,
    copying,
    distribution,
    images,
    lives,
    machine,
    machine_snapshots,
    machines,
    snapshots,
    ssh,
    system,
    upkeep,
    volumes,
)
from wherry.api.http import Route, Routes

ROUTES = Routes()

_TABLE: tuple[Route, ...] = (
    *system.TABLE,
    *containers.TABLE,
    *lives.TABLE,
    *snapshots.TABLE,
    *copying.TABLE,
    *bootstrap.TABLE,
    *distribution.TABLE,
    *archives.TABLE,
    *upkeep.TABLE,
    *images.TABLE,
    *volumes.TABLE,
    *machine.TABLE,
    *machine_snapshots.TABLE,
    *machines.TABLE,
    *ssh.TABLE,
    *system.POLITE,
    *system.REST,
)

for _method, _pattern, _handler in _TABLE:
    ROUTES.add(_method, _pattern, _handler)
