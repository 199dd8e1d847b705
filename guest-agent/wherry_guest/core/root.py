"""The container's root: propagation of what is there, a directory as the root, entering it.

Rules: a root is a mount. An overlay is mounted by `core.overlay`; a directory (an OCI bundle's) is
taken as a detached tree and attached. Everything stays in the container's own mount namespace and
vanishes with it; nothing of the old root is left after `EnterRoot`. pivot_root(2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wherry_guest.core.mount_options import PROPAGATION, RELATED
from wherry_guest.core.steps import SetupError
from wherry_guest.core.syscalls import (
    AT_FDCWD,
    MNT_DETACH,
    MOUNT_ATTR_RDONLY,
    MS_MOVE,
    MS_PRIVATE,
    MS_REC,
    MS_SLAVE,
)

if TYPE_CHECKING:
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel


@dataclass(frozen=True, slots=True)
class MakePrivate:
    """Let no mount below show outside of this namespace."""

    def describe(self) -> str:
        return "make mounts private"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.mount(None, "/", None, MS_REC | MS_PRIVATE, None)


@dataclass(frozen=True, slots=True)
class TakeRoot:
    """Copy the directory `path` with all mounts below it, detached, to be the root later.

    Before `MakePrivate`: with a `propagation` that needs it the root hears of later mounts outside.
    """

    path: str
    propagation: str = ""

    def describe(self) -> str:
        return f"take {self.path} for the root (root.path)"

    def execute(self, kernel: Kernel, state: State) -> None:
        tree = kernel.open_tree(self.path, True)
        mode = MS_SLAVE if self.propagation in RELATED else MS_PRIVATE
        kernel.set_propagation(tree, "", True, mode)  # a shared root could not be pivoted to
        state.root = tree


@dataclass(frozen=True, slots=True)
class AttachRoot:
    """Attach that tree at `path`, and go there."""

    path: str

    def describe(self) -> str:
        return f"mount the root on {self.path}"

    def execute(self, kernel: Kernel, state: State) -> None:
        tree = state.root
        if tree is None:
            raise SetupError(f"{self.describe()}: nobody has taken it")
        kernel.move_mount(tree, self.path)
        kernel.fchdir(tree)
        kernel.close(tree)
        state.root = None


@dataclass(frozen=True, slots=True)
class EnterRoot:
    """Make `path` ("": the working directory) the root, and let go of the old one.

    Args:
        pivot: False: leave the old root covered instead, where it cannot be pivoted (an initramfs).
    """

    path: str
    pivot: bool = True

    def describe(self) -> str:
        return f"make {self.path or 'the mounted root'} the root"

    def execute(self, kernel: Kernel, state: State) -> None:
        if self.path:
            kernel.chdir(self.path)
        if self.pivot:
            # pivot_root(2), "pivot_root('.', '.')": the old root comes to lie on top of the new one
            kernel.pivot_root(".", ".")
            kernel.umount(".", MNT_DETACH)
        else:
            kernel.mount(".", "/", None, MS_MOVE, None)
            kernel.chroot(".")
        kernel.chdir("/")


@dataclass(frozen=True, slots=True)
class SetRootPropagation:
    """`linux.rootfsPropagation`, when the root is the only one that is left."""

    mode: str

    def describe(self) -> str:
        return f"make the root {self.mode} (linux.rootfsPropagation)"

    def execute(self, kernel: Kernel, state: State) -> None:
        flag, recursive = PROPAGATION[self.mode]
        kernel.set_propagation(AT_FDCWD, "/", recursive, flag)


@dataclass(frozen=True, slots=True)
class ReadonlyRoot:
    """Make the root itself, not what is mounted in it, read-only."""

    def describe(self) -> str:
        return "make the root read-only (root.readonly)"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.mount_setattr(AT_FDCWD, "/", False, MOUNT_ATTR_RDONLY, 0)
