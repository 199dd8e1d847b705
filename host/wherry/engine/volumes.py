"""Volumes: their table, and what can be done with them.

A volume is a row here and a directory in the guest, which is made when a container first uses it
and removed in the guest's own time: no machine is started to create, list or remove one. A volume
that a container has, running or not, cannot be removed.
"""

from __future__ import annotations

import builtins
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from wherry.engine.events import EventBus
from wherry.engine.guest import Guest, read_sizes
from wherry.engine.model import Container, Event, MountPoint, Volume
from wherry.engine.mounts import LOCAL, check_driver
from wherry.engine.state import State, Transaction
from wherry.errors import Conflict, InvalidInput, NotFound, WherryError

MOUNT_POINTS = "/var/lib/wherry/volumes"
"""Where the guest's agent keeps volumes; people see it in inspect."""

ANONYMOUS_LABEL = "com.docker.volume.anonymous"
"""Docker's mark of a volume that nobody named."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_NAME_LENGTH = 118
"""An agent's file name of 128 characters, less what tells two volumes of one name apart."""

log = logging.getLogger(__name__)

Filters = Mapping[str, Sequence[str]]


def mount_point(volume: Volume) -> str:
    """The volume's directory in the guest."""
    return f"{MOUNT_POINTS}/{volume.directory}/_data"


def volume_event(volume: Volume, action: str, **attributes: str) -> Event:
    """A volume's event, in Docker's form."""
    return Event("volume", action, volume.name, time.time_ns(), {"driver": LOCAL, **attributes})


class VolumeTable:
    """All volumes by name. Synchronous; changes of rows are made in the caller's transaction, and
    told here (`added`, `dropped`) once it is committed.

    Attributes:
        on_dropped: called with each volume that is gone.
    """

    def __init__(self, state: State) -> None:
        self._volumes = {volume.name: volume for volume in state.volumes()}
        self._leaving = set(state.volume_removals())
        self.on_dropped: Callable[[Volume], None] = lambda _volume: None

    def __iter__(self) -> Iterator[Volume]:
        return iter(tuple(self._volumes.values()))

    def get(self, name: str) -> Volume | None:
        return self._volumes.get(name)

    def find(self, name: str) -> Volume:
        """Raises NotFound."""
        volume = self._volumes.get(name)
        if volume is None:
            raise NotFound(f"get {name}: no such volume")
        return volume

    def new(self, name: str = "", labels: Mapping[str, str] | None = None) -> Volume:
        """A volume that is not stored yet; without a name an anonymous one. Raises InvalidInput."""
        labels = dict(labels or {})
        if not name:
            labels[ANONYMOUS_LABEL] = ""
        checked = checked_name(name) if name else secrets.token_hex(32)
        directory = checked
        while directory in self._leaving:  # the guest still has an earlier one of this name
            directory = f"{checked}.{secrets.token_hex(4)}"
        return Volume(checked, time.time_ns(), directory, not name, labels)

    def provided(
        self, mounts: Iterable[MountPoint]
    ) -> tuple[tuple[MountPoint, ...], tuple[Volume, ...]]:
        """Mount points with their volumes' names, and the volumes that must be made for them.

        Raises:
            InvalidInput: a name is none.
        """
        made: dict[str, Volume] = {}
        named = []
        for mount in mounts:
            if mount.type == "volume" and self.get(mount.volume) is None:
                volume = made.get(mount.volume) or self.new(mount.volume, mount.labels)
                made[volume.name] = volume
                mount = replace(mount, volume=volume.name)
            named.append(mount)
        return tuple(named), tuple(made.values())

    def orphans(self, container: Container, others: Iterable[Container]) -> tuple[Volume, ...]:
        """The container's anonymous volumes that nobody else uses."""
        names = {mount.volume for mount in container.mounts if mount.anonymous}
        if names:
            for other in others:
                names -= {mount.volume for mount in other.mounts}
        return tuple(volume for volume in self if volume.name in names)

    def add_rows(self, transaction: Transaction, volumes: Iterable[Volume]) -> None:
        for volume in volumes:
            transaction.add_volume(volume)
            transaction.add_event(volume_event(volume, "create"))

    def drop_rows(self, transaction: Transaction, volumes: Iterable[Volume]) -> None:
        for volume in volumes:
            transaction.delete_volume(volume)
            transaction.add_event(volume_event(volume, "destroy"))

    def added(self, volumes: Iterable[Volume]) -> None:
        for volume in volumes:
            self._volumes[volume.name] = volume

    def dropped(self, volumes: Iterable[Volume]) -> None:
        for volume in volumes:
            del self._volumes[volume.name]
            self._leaving.add(volume.directory)
            self.on_dropped(volume)

    def left(self, directory: str) -> None:
        """The guest has removed a dropped volume's directory."""
        self._leaving.discard(directory)

    def mount_events(self, container: Container, action: str) -> Iterator[Event]:
        """`mount` or `unmount` for each volume of a container."""
        for mount in container.mounts:
            volume = self.get(mount.volume)
            if volume is not None:
                about = {"container": container.id, "destination": mount.destination}
                if action == "mount":
                    about |= {"read/write": str(mount.writable).lower(), "propagation": ""}
                yield volume_event(volume, action, **about)


class Volumes:
    """Docker's operations. `containers` gives all of them, as they are now."""

    def __init__(
        self,
        table: VolumeTable,
        events: EventBus,
        guest: Guest,
        containers: Callable[[], Iterable[Container]],
    ) -> None:
        self._table = table
        self._events = events
        self._guest = guest
        self._containers = containers

    def create(
        self,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        driver: str = LOCAL,
        options: Mapping[str, str] | None = None,
    ) -> Volume:
        """Make a volume; one that exists is returned as it is.

        Raises:
            InvalidInput: the name, the driver or an option is none.
            NotImplementedYet: an option.
        """
        check_driver(driver, options)
        known = self._table.get(name)
        if known is not None:
            return known
        volume = self._table.new(name, labels)
        with self._events.transaction() as transaction:
            self._table.add_rows(transaction, [volume])
        self._table.added([volume])
        return volume

    def get(self, name: str) -> Volume:
        """Raises NotFound."""
        return self._table.find(name)

    def mount_point(self, name: str) -> str:
        """The volume's directory in the guest; "" for one that there is not."""
        volume = self._table.get(name)
        return "" if volume is None else mount_point(volume)

    def list(self, filters: Filters | None = None) -> builtins.list[Volume]:
        """Volumes by name. Filters: dangling, driver, label, name. Raises InvalidInput."""
        tests = [self._test(name, values) for name, values in (filters or {}).items() if values]
        found = [volume for volume in self._table if all(test(volume) for test in tests)]
        return sorted(found, key=lambda volume: volume.name)

    def users(self, name: str) -> builtins.list[str]:
        """The ids of the containers that have the volume."""
        return [
            container.id
            for container in self._containers()
            if any(mount.volume == name for mount in container.mounts)
        ]

    def remove(self, name: str, force: bool = False) -> None:
        """Raises NotFound (not with `force`), Conflict when a container has it."""
        volume = self._table.get(name)
        if volume is None and force:
            return
        volume = self._table.find(name)
        if users := self.users(name):
            raise Conflict(
                f"remove {name}: volume is in use - [{', '.join(users)}]",
                hint="remove those containers first",
            )
        self._drop([volume])

    async def prune(self, filters: Filters | None = None) -> tuple[builtins.list[str], int]:
        """Remove anonymous volumes that no container has; with the filter `all` others too.

        Returns:
            Their names, and the bytes that they had (0 where the machine is off: only it knows).
        """
        filters = dict(filters or {})
        everything = any(value in ("1", "true") for value in filters.pop("all", ()))
        if unknown := set(filters) - {"label", "label!"}:
            raise InvalidInput(f"invalid filter '{min(unknown)}'")
        # The sizes are asked first: meanwhile a volume may come into use.
        sizes = await self._sizes(self._unused(filters, everything))
        unused = self._unused(filters, everything)
        self._drop(unused)
        reclaimed = sum(sizes.get(volume.directory, 0) for volume in unused)
        self._events.publish_late(
            Event("volume", "prune", "", time.time_ns(), {"reclaimed": str(reclaimed)})
        )
        return [volume.name for volume in unused], reclaimed

    async def usage(self) -> dict[str, int]:
        """Bytes by volume's name; of all that the guest has made, when the machine runs."""
        sizes = await self._sizes(tuple(self._table))
        return {
            volume.name: sizes[volume.directory]
            for volume in self._table
            if volume.directory in sizes
        }

    def _unused(self, filters: Filters, everything: bool) -> builtins.list[Volume]:
        unused = self.list({**filters, "dangling": ["true"]})
        return [volume for volume in unused if everything or volume.anonymous]

    async def _sizes(self, volumes: Sequence[Volume]) -> dict[str, int]:
        """Bytes by directory; empty when the machine is off."""
        link = self._guest.steady_link
        if link is None or not volumes:
            return {}
        try:
            directories = [volume.directory for volume in volumes]
            return await read_sizes(link, "volume.usage", {"names": directories})
        except WherryError as error:
            log.warning("the sizes of volumes are not known: %s", error)
            return {}

    def _drop(self, volumes: Sequence[Volume]) -> None:
        with self._events.transaction() as transaction:
            self._table.drop_rows(transaction, volumes)
        self._table.dropped(volumes)

    def _test(self, name: str, values: Sequence[str]) -> Callable[[Volume], bool]:
        if name == "name":
            return lambda volume: any(value in volume.name for value in values)
        if name == "driver":
            return lambda volume: LOCAL in values
        if name == "label":
            return lambda volume: all(_has_label(volume, value) for value in values)
        if name == "label!":
            return lambda volume: not any(_has_label(volume, value) for value in values)
        if name == "dangling":
            if values[-1].lower() not in ("true", "1", "false", "0"):
                raise InvalidInput(f"invalid filter 'dangling={values[-1]}'")
            wanted = values[-1].lower() in ("true", "1")
            used = {mount.volume for item in self._containers() for mount in item.mounts}
            return lambda volume: (volume.name not in used) is wanted
        raise InvalidInput(f"invalid filter '{name}'")


def checked_name(name: str) -> str:
    """Raises InvalidInput when it is no volume's name."""
    if len(name) < 2:
        raise InvalidInput(
            "volume name is too short, names should be at least two alphanumeric characters"
        )
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f'"{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed',
            hint="a directory of this computer is an absolute path",
        )
    if len(name) > _NAME_LENGTH:
        raise InvalidInput(f"volume name is too long: at most {_NAME_LENGTH} characters")
    return name


def _has_label(volume: Volume, wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    return name in volume.labels and (not equals or volume.labels[name] == value)
