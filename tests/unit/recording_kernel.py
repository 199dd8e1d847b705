"""A kernel that does nothing and remembers everything: for plans on any OS."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from typing import Any

from wherry_guest.core.holder import Holder
from wherry_guest.core.programs import ProgramEnd
from wherry_guest.core.syscalls import FileStatus, Kernel


class RecordingKernel(Kernel):
    """Every method of `Kernel` records `(name, *arguments)` in `calls` and returns a likely value.

    Args:
        files: path -> text, for `open` and `read`; an OSError is raised instead of being read.
        statuses: path -> what `stat` says; anything else is a directory.
        failing: (name, first argument as text) -> errno.
    """

    def __init__(
        self,
        files: Mapping[str, str] | None = None,
        statuses: Mapping[str, FileStatus] | None = None,
        failing: Mapping[tuple[str, str], int] | None = None,
    ) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.files = files or {}
        self.statuses = statuses or {}
        self.failing = failing or {}
        self._next_fd = 100
        self._open: dict[int, str] = {}

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def arguments(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]

    def open(self, path: str, flags: int, mode: int = 0) -> int:
        self._record("open", path, flags)
        return self._descriptor(path)

    def open_tree(self, path: str, recursive: bool, directory: int = -100) -> int:
        self._record("open_tree", path, recursive, directory)
        return self._descriptor(path or self._open[directory])

    def stat(self, path: str | int) -> FileStatus:
        path = self._open[path] if isinstance(path, int) and path > 2 else path
        return self.statuses.get(str(path), FileStatus(stat.S_IFDIR | 0o755))

    def read(self, fd: int, size: int) -> bytes:
        return self.files[self._open[fd]].encode()[:size]

    def fsopen(self, fstype: str) -> int:
        self._record("fsopen", fstype)
        return self._descriptor(fstype)

    def fsmount(self, fd: int, attributes: int) -> int:
        self._record("fsmount", fd, attributes)
        return self._descriptor("fsmount")

    def hold_user_namespace(self) -> Holder:
        self._record("hold_user_namespace")
        return Holder(pid=4242, number=4242, leash=-1)

    def run_program(
        self, path: str, args: Any, env: Any, text: bytes, timeout: float | None
    ) -> ProgramEnd:
        self._record("run_program", path, tuple(args), tuple(env), text, timeout)
        return ProgramEnd(0, b"")

    def readlink(self, path: str) -> str:
        self._record("readlink", path)
        return "4242"

    def realpath(self, path: str) -> str:
        return path

    def executable(self, path: str) -> bool:
        return True

    def getcwd(self) -> str:
        return "/"

    def execve(self, path: str, args: Any, env: Any) -> Any:
        self._record("execve", path, tuple(args), tuple(env))

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)

    def ioctl(self, fd: int, request: int, argument: int | bytes = 0) -> int:
        self._record("ioctl", fd, request, argument)
        return self._descriptor("ioctl")

    def _descriptor(self, path: str) -> int:
        self._next_fd += 1
        self._open[self._next_fd] = path
        return self._next_fd

    def _record(self, name: str, *args: Any) -> None:
        self.calls.append((name, *args))
        number = self.failing.get((name, str(args[0]) if args else ""))
        if number is not None:
            raise OSError(number, os.strerror(number))


def _recorder(name: str) -> Callable[..., int]:
    def method(self: RecordingKernel, *args: Any) -> int:
        self._record(name, *args)
        return 0

    return method


for _name in set(vars(Kernel)) - set(vars(RecordingKernel)):
    if not _name.startswith("_"):
        setattr(RecordingKernel, _name, _recorder(_name))
