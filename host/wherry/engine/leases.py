"""What a machine's containers need of the images stays, whoever prunes: a lease per container.

A lease's holder is `container:MACHINE:ID`, or `snapshot:MACHINE:NAME:ID` for the container that a
snapshot of the machine has. All methods read or write the store: call them in
threads. A machine that is gone, however it went, holds nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Set

from wherry.engine.model import Container
from wherry.engine.ports import StorePort
from wherry.errors import WherryError

log = logging.getLogger(__name__)

_KIND = "container"
_SNAPSHOT = "snapshot"


def holder_prefix(machine: str) -> str:
    """How the holders of `machine` begin; a container's id follows."""
    return f"{_KIND}:{machine}:"


def snapshot_prefix(machine: str, snapshot: str) -> str:
    """How the holders of one of `machine`'s snapshots begin; a container's id follows."""
    return f"{_SNAPSHOT}:{machine}:{snapshot}:"


def release_snapshots(store: StorePort, machine: str, kept: Set[str]) -> None:
    """Give up what is held for snapshots of `machine` that are not among `kept`."""
    for holder in store.holders():
        kind, _, rest = holder.partition(":")
        owner, _, rest = rest.partition(":")
        if kind == _SNAPSHOT and owner == machine and rest.partition(":")[0] not in kept:
            store.release(holder)


def hold_missing(store: StorePort, machine: str, containers: Iterable[Container]) -> None:
    """Take leases that are not there: of a copy, or since the store's database was rebuilt."""
    held = set(store.holders())
    for container in containers:
        holder = holder_prefix(machine) + container.id
        if holder in held:
            continue
        try:
            store.hold_manifest(holder, container.manifest_digest)
        except WherryError as error:
            log.warning("container %s: its image is not held: %s", container.id, error)


def release_others(store: StorePort, machine: str, container_ids: Set[str]) -> None:
    """Give up what is held for other containers of `machine`."""
    prefix = holder_prefix(machine)
    for holder in store.holders():
        if holder.startswith(prefix) and holder.removeprefix(prefix) not in container_ids:
            store.release(holder)


def release_gone(store: StorePort, machines: Set[str]) -> None:
    """Give up what is held for machines that are not among `machines`."""
    for holder in store.holders():
        kind, _, rest = holder.partition(":")
        if kind in (_KIND, _SNAPSHOT) and rest.partition(":")[0] not in machines:
            store.release(holder)
