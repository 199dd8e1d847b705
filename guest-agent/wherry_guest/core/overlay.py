"""The container's root: an overlay of read-only layers and one writable directory.

Rules (all found by experiment): lowers are short names relative to the working directory, because
the option string ends at one page with a misleading ELOOP; at most 500 of them, none twice (ELOOP
too); always `redirect_dir=nofollow,metacopy=off,index=off`, so that a hostile layer's xattrs cannot
redirect a lookup. Documentation/filesystems/overlayfs.rst
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wherry_guest.core.fields import SpecError

if TYPE_CHECKING:
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel
    from wherry_guest.zygote import Rootfs

MAX_LOWERS: Final = 500  # OVL_MAX_STACK, fs/overlayfs/params.h
_PAGE: Final = 4096
SAFE_OPTIONS: Final = "redirect_dir=nofollow,metacopy=off,index=off"
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
_PATH: Final = re.compile(r"/[A-Za-z0-9_./-]*")


@dataclass(frozen=True, slots=True)
class MountOverlay:
    """Mount the overlay on `target`; the lowers are names in `layers`."""

    layers: str
    options: str
    target: str

    def describe(self) -> str:
        return f"mount overlay on {self.target}"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.chdir(self.layers)
        kernel.mount("overlay", self.target, "overlay", 0, self.options)


@dataclass(frozen=True, slots=True)
class MountSingleLayer:
    """Mount one layer alone, read-only, on `target`: overlay refuses a single lower."""

    layers: str
    name: str
    target: str

    def describe(self) -> str:
        return f"mount layer {self.name} on {self.target}"

    def execute(self, kernel: Kernel, state: State) -> None:
        kernel.move_mount(kernel.open_tree(f"{self.layers}/{self.name}", False), self.target)


def mount_rootfs(rootfs: Rootfs, layers: str, target: str) -> MountOverlay | MountSingleLayer:
    """The step that mounts `rootfs` on `target`.

    Raises:
        SpecError: too many layers, one twice, or a name that would break the option string.
    """
    if rootfs.upperdir is None and len(rootfs.lowerdirs) == 1:
        return MountSingleLayer(layers, *rootfs.lowerdirs, target)
    return MountOverlay(layers, overlay_options(rootfs), target)


def overlay_options(rootfs: Rootfs) -> str:
    """The mount option string; raises SpecError."""
    lowers = rootfs.lowerdirs
    if not 1 <= len(lowers) <= MAX_LOWERS:
        raise SpecError(f"a root of {len(lowers)} layers: 1 to {MAX_LOWERS} are possible")
    if len(set(lowers)) != len(lowers):
        raise SpecError("a layer stands twice in the root")
    for name in lowers:
        if not _NAME.fullmatch(name) or name in (".", ".."):
            raise SpecError(f"{name!r} is not a layer's mount point")
    options = f"lowerdir={':'.join(lowers)}"
    if rootfs.upperdir is not None and rootfs.workdir is not None:
        for path in (rootfs.upperdir, rootfs.workdir):
            if not _PATH.fullmatch(path):
                raise SpecError(f"{path!r} cannot be an overlay directory")
        options += f",upperdir={rootfs.upperdir},workdir={rootfs.workdir}"
    options += f",{SAFE_OPTIONS}"
    if len(options) >= _PAGE:
        raise SpecError(f"the overlay's options have {len(options)} bytes: they must fit one page")
    return options
