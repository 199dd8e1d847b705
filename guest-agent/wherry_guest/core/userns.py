"""User namespaces and id-mapped mounts: the mappings, and how a namespace with them is made.

Rules: a user namespace is made by a child that does nothing else (the *holder*); its maps are
written from outside, by a process that still has all rights; what remains is a descriptor. The
container enters it last of all that is done outside. user_namespaces(7), mount_setattr(2).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wherry_guest.core.fields import Fields, SpecError
from wherry_guest.core.steps import SetupError
from wherry_guest.core.syscalls import CLONE_NEWUSER

if TYPE_CHECKING:
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel

MAX_EXTENTS: Final = 340  # UID_GID_MAP_MAX_EXTENTS, include/linux/user_namespace.h
_MAX_ID: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class IdRange:
    """`linux.uidMappings[]`: `size` ids from `inside` on are `outside` and following."""

    inside: int
    outside: int
    size: int


@dataclass(frozen=True, slots=True)
class IdMaps:
    """Both mappings of a user namespace, or of an id-mapped mount."""

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]

    @staticmethod
    def text(ranges: tuple[IdRange, ...]) -> str:
        """A uid_map's contents, user_namespaces(7)."""
        return "".join(f"{it.inside} {it.outside} {it.size}\n" for it in ranges)


def parse_id_maps(item: Fields) -> IdMaps | None:
    """`uidMappings` and `gidMappings` of an object; None where there are none; SpecError."""
    uids, gids = (_parse_ranges(item, field) for field in ("uidMappings", "gidMappings"))
    if bool(uids) != bool(gids):
        missing = item.name("gidMappings" if uids else "uidMappings")
        raise SpecError(f"{missing} is missing: there is only the other one")
    return IdMaps(uids, gids) if uids else None


def _parse_ranges(item: Fields, field: str) -> tuple[IdRange, ...]:
    ranges = []
    for entry in item.objects(field):
        inside, outside = (entry.integer(name, 0, 0, _MAX_ID) for name in ("containerID", "hostID"))
        ranges.append(IdRange(inside, outside, entry.integer("size", 0, 1, _MAX_ID)))
        entry.finish()
    if len(ranges) > MAX_EXTENTS:
        raise SpecError(f"{item.name(field)} has {len(ranges)} ranges: {MAX_EXTENTS} are possible")
    return tuple(ranges)


def make_user_namespace(kernel: Kernel, maps: IdMaps) -> int:
    """A descriptor of a new user namespace with these mappings, in which nobody is."""
    holder = kernel.hold_user_namespace()
    try:
        # the writer has all rights, so setgroups(2) stays allowed inside
        kernel.write(f"/proc/{holder.number}/uid_map", IdMaps.text(maps.uids))
        kernel.write(f"/proc/{holder.number}/gid_map", IdMaps.text(maps.gids))
        return kernel.open(f"/proc/{holder.number}/ns/user", os.O_RDONLY)
    finally:
        kernel.let_go(holder)


@dataclass(frozen=True, slots=True)
class MakeUserNamespace:
    """Make the container's user namespace, to be entered later."""

    maps: IdMaps

    def describe(self) -> str:
        return "make the user namespace (linux.uidMappings, linux.gidMappings)"

    def execute(self, kernel: Kernel, state: State) -> None:
        state.user_namespace = make_user_namespace(kernel, self.maps)


@dataclass(frozen=True, slots=True)
class OpenUserNamespace:
    """Take the user namespace that stands at `path`, to be entered later."""

    path: str

    def describe(self) -> str:
        return f"open the user namespace {self.path}"

    def execute(self, kernel: Kernel, state: State) -> None:
        state.user_namespace = kernel.open(self.path, os.O_RDONLY)


@dataclass(frozen=True, slots=True)
class EnterUserNamespace:
    """Enter it; from here on there are rights in it only."""

    def describe(self) -> str:
        return "enter the user namespace"

    def execute(self, kernel: Kernel, state: State) -> None:
        fd = user_namespace(state, self.describe())
        kernel.setns(fd, CLONE_NEWUSER)
        kernel.close(fd)
        state.user_namespace = None


@dataclass(frozen=True, slots=True)
class BecomeRootInside:
    """Take the ids of the user namespace's root; until now the process had none in it."""

    def describe(self) -> str:
        return "become the user namespace's root"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.setgroups(())
        kernel.setgid(0)
        kernel.setuid(0)


def user_namespace(state: State, step: str) -> int:
    """The container's user namespace; SetupError where there is none."""
    if state.user_namespace is None:
        raise SetupError(f"{step}: there is no user namespace")
    return state.user_namespace


def id_map_tree(kernel: Kernel, tree: int, recursive: bool, maps: IdMaps) -> None:
    """Let the detached mount `tree` show its files' owners as `maps` says."""
    fd = make_user_namespace(kernel, maps)
    try:
        kernel.set_id_map(tree, recursive, fd)
    finally:
        kernel.close(fd)
