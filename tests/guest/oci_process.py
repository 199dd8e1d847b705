"""The command line with a kernel whose n-th call fails: `oci_process.py N COMMAND …`.

The count goes on in forked children, so that every call of a container's creation has its turn,
wherever it happens. With N = 0 nothing fails. The name of the call that failed goes to the file in
FAILED_CALL, so that a test knows when N is beyond the last one; through a mapping, which children
have even where they cannot reach the file.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
from pathlib import Path
from typing import Any

from wherry_guest.core.syscalls import Kernel
from wherry_guest.oci.main import main

NEVER = ("let_go", "run_program", "close", "hold_user_namespace")
"""What cleans up must work (close(2) frees even when it fails), what is made of other calls counts
them."""


class FailingKernel(Kernel):
    """Counts every call, and fails one."""

    def __init__(self, failing: int, note: mmap.mmap) -> None:
        self.failing = failing
        self.note = note
        self.count = 0


def _counted(name: str) -> Any:
    method = getattr(Kernel, name)

    def call(self: FailingKernel, *args: Any) -> Any:
        self.count += 1
        if self.count == self.failing:
            self.note[: len(name)] = name.encode()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return method(self, *args)

    return call


for _name in vars(Kernel):
    if not _name.startswith("_") and _name not in NEVER:
        setattr(FailingKernel, _name, _counted(_name))

if __name__ == "__main__":
    with Path(os.environ["FAILED_CALL"]).open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
    sys.exit(main(sys.argv[2:], FailingKernel(int(sys.argv[1]), mapping)))
