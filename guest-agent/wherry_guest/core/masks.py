"""`linux.maskedPaths` and `linux.readonlyPaths`: what a container must not see, or not change.

Rules: they come after every mount; what is missing is passed over, as the specification says.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wherry_guest.core.steps import SetupError
from wherry_guest.core.syscalls import MOUNT_ATTR_RDONLY, MS_BIND, MS_RDONLY, O_PATH

if TYPE_CHECKING:
    from wherry_guest.core.steps import State
    from wherry_guest.core.syscalls import Kernel

NULL: Final = (1, 3)  # Documentation/admin-guide/devices.txt


@dataclass(frozen=True, slots=True)
class MaskPath:
    """Hide what stands at `path`, if anything does: a file by /dev/null, a directory by nothing."""

    path: str

    def describe(self) -> str:
        return f"mask {self.path}"

    def execute(self, kernel: Kernel, state: State) -> None:
        try:
            mode = kernel.stat(self.path).mode
        except (FileNotFoundError, NotADirectoryError):
            return
        if not stat.S_ISDIR(mode):
            self._bind_null(kernel)
        elif state.masked_directory is not None:
            kernel.mount(state.masked_directory, self.path, None, MS_BIND, None)
        else:
            kernel.mount("tmpfs", self.path, "tmpfs", MS_RDONLY, "size=4k,mode=755")
            state.masked_directory = self.path

    def _bind_null(self, kernel: Kernel) -> None:
        fd = kernel.open("/dev/null", O_PATH)
        if not kernel.stat(fd).is_character_device(*NULL):
            raise SetupError(f"{self.describe()}: the container's /dev/null is something else")
        tree = kernel.open_tree("", False, fd)
        kernel.move_mount(tree, self.path)
        kernel.close(tree)
        kernel.close(fd)


@dataclass(frozen=True, slots=True)
class ReadonlyPath:
    """Make what stands at `path` read-only, if anything does."""

    path: str

    def describe(self) -> str:
        return f"make {self.path} read-only"

    def execute(self, kernel: Kernel, state: State) -> None:
        try:
            tree = kernel.open_tree(self.path, True)
        except (FileNotFoundError, NotADirectoryError):
            return
        kernel.mount_setattr(tree, "", True, MOUNT_ATTR_RDONLY, 0)
        kernel.move_mount(tree, self.path)
        kernel.close(tree)
