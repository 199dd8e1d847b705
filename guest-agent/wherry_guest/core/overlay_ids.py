"""The overlay of a container with a user namespace: its layers are id-mapped mounts.

Rules: on the disks everything stays as the image has it (root's files are 0's), the mounts say
whose it is in the container. overlayfs itself cannot be id-mapped, its layers can (since 5.19), so
each one is mounted anew on a stage of the container's own. Runs outside of the user namespace, in a
mount namespace that nobody else sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wherry_guest.core.overlay import MountOverlay, MountSingleLayer, mount_rootfs, overlay_options
from wherry_guest.core.syscalls import PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP
from wherry_guest.core.userns import IdMaps, IdRange, user_namespace
from wherry_guest.zygote import Rootfs

if TYPE_CHECKING:
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel

_WRITABLE: Final = "rw"


@dataclass(frozen=True, slots=True)
class MountMappedOverlay:
    """Mount `rootfs` on `target`, its layers mapped as the container's user namespace is."""

    rootfs: Rootfs
    layers: str
    target: str
    maps: IdMaps

    def describe(self) -> str:
        return f"mount an id-mapped overlay on {self.target}"

    def execute(self, kernel: Kernel, state: State) -> None:
        step = mount_rootfs(self.rootfs, self.layers, self.target)
        namespace = user_namespace(state, self.describe())
        if isinstance(step, MountSingleLayer):
            self._attach(kernel, namespace, f"{self.layers}/{step.name}", self.target)
            return
        kernel.mount("tmpfs", self.target, "tmpfs", 0, "mode=755")
        names = []
        for index, name in enumerate(self.rootfs.lowerdirs):
            kernel.mkdir(f"{self.target}/{index}")
            self._attach(kernel, namespace, f"{self.layers}/{name}", f"{self.target}/{index}")
            names.append(str(index))
        staged = self._stage_writable(kernel, namespace, tuple(names))
        with_ids = MountOverlay(self.target, overlay_options(staged), self.target)
        # What overlayfs makes for itself is its mounter's, who must have an id in the mapping.
        kernel.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
        kernel.set_file_ids(_outside(self.maps.uids), _outside(self.maps.gids))
        with_ids.execute(kernel, state)
        kernel.set_file_ids(0, 0)
        kernel.prctl(PR_SET_SECUREBITS, 0)

    def _stage_writable(self, kernel: Kernel, namespace: int, lowerdirs: tuple[str, ...]) -> Rootfs:
        upper, work = self.rootfs.upperdir, self.rootfs.workdir
        if upper is None or work is None:
            return Rootfs(lowerdirs)
        parent = _common_directory(upper, work)
        stage = f"{self.target}/{_WRITABLE}"
        kernel.mkdir(stage)
        self._attach(kernel, namespace, parent, stage)
        return Rootfs(lowerdirs, stage + upper[len(parent) :], stage + work[len(parent) :])

    def _attach(self, kernel: Kernel, namespace: int, source: str, target: str) -> None:
        tree = kernel.open_tree(source, False)
        kernel.set_id_map(tree, False, namespace)
        kernel.move_mount(tree, target)
        kernel.close(tree)


def _common_directory(first: str, second: str) -> str:
    """The longest directory that both paths begin with."""
    common = []
    for one, other in zip(first.split("/")[:-1], second.split("/")[:-1], strict=False):
        if one != other:
            break
        common.append(one)
    return "/".join(common)


def _outside(ranges: tuple[IdRange, ...]) -> int:
    return next((it.outside for it in ranges if it.inside == 0), ranges[0].outside)
