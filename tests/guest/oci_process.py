"""The command line with a kernel whose n-th call fails: a server on stdin and stdout.

A request is a line of JSON, [N, ARGUMENTS]: a fork runs the command with the N-th call failing (0:
none). The count goes on in its forked children, so that every call of a container's creation has
its turn, wherever it happens. The answer, a line again: exit code, stdout, stderr, the name of the
call that failed (empty: N is beyond the last one), and whether a process has outlived the command:
for those this one is init.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import sys
import tempfile
from typing import Any

from wherry_guest.core.syscalls import Kernel
from wherry_guest.oci.main import main

PR_SET_CHILD_SUBREAPER = 36  # uapi/linux/prctl.h
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


def run(failing: int, arguments: list[str], note: mmap.mmap) -> dict[str, Any]:
    """One command, in a fork, to the end of all its processes but those that outlive it."""
    note[:] = bytes(len(note))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        pid = os.fork()
        if pid == 0:
            nothing = os.open(os.devnull, os.O_RDONLY)
            for target, fd in enumerate((nothing, out.fileno(), errors.fileno())):
                os.dup2(fd, target)
            code = main(arguments, FailingKernel(failing, note))
            sys.stdout.flush()
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        answer: dict[str, Any] = {"code": os.waitstatus_to_exitcode(status)}
        for name, file in (("stdout", out), ("stderr", errors)):
            file.seek(0)
            answer[name] = file.read().decode()
    return answer | {"failed": note[:].rstrip(b"\0").decode(), "left": outlived()}


def outlived() -> bool:
    """Whether there is a process that is not a zombie."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


if __name__ == "__main__":
    Kernel().prctl(PR_SET_CHILD_SUBREAPER, 1)
    shared = mmap.mmap(-1, 64)
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line), shared)), flush=True)
