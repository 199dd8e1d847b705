"""PID 1's very loop in a process of its own, for tests: `pid1_process.py SOCKET_FD JSON_LAYOUT`.

It lives in its own mount namespace. Instead of running an agent it hands the agent's end of the
control socket to the test over SOCKET_FD, with the pid of a process that stands for the agent.

WITHOUT_CRADLE in the environment: every process is made by a fork. WITHOUT_FORKS: none but the
cradle is. FAILING: in that file stands the number of the operation that fails in flat programs.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import wherry_guest
from wherry_guest.core import cradle, flat, starts
from wherry_guest.core.pid1 import Pid1, Program
from wherry_guest.core.plan import Layout
from wherry_guest.core.root import MakePrivate
from wherry_guest.core.steps import State
from wherry_guest.core.syscalls import CLONE_NEWNS, Kernel


class TestKernel(Kernel):
    """The real kernel, but power-off ends this process only."""

    def reboot(self, command: int) -> None:
        os._exit(0)

    def clone(self, flags: int, cgroup: int | None) -> int:
        if cgroup is not None and "WITHOUT_FORKS" in os.environ:
            raise OSError(errno.EAGAIN, "this PID 1 does not fork")
        return super().clone(flags, cgroup)


def arrange() -> None:
    """What the environment asks for."""
    if "WITHOUT_CRADLE" in os.environ:
        cradle.LISTINGS.clear()
    if "FAILING" in os.environ:
        starts.Starts.container = failing(starts.Starts.container)


def failing(container: Callable[..., starts.Start]) -> Callable[..., starts.Start]:
    def made(*args: Any) -> starts.Start:
        start = container(*args)
        if start.program is None:
            return start
        program = bytearray(start.program)
        at = flat.HEADER + flat.OPERATION * int(Path(os.environ["FAILING"]).read_text())
        if int.from_bytes(program[at : at + 8], "little") < flat.CHECK:
            program[at : at + 8] = (0xFFF).to_bytes(8, "little")  # no system call has this number
        return replace(start, program=bytes(program))

    return made


def main() -> None:
    rendezvous = socket.socket(fileno=int(sys.argv[1]))
    rendezvous.set_inheritable(False)

    def launch(control: socket.socket, program: Program) -> int:
        pid = os.fork()
        if pid == 0:
            control.close()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            while True:
                signal.pause()
        words = json.dumps({"pid": pid, "directory": program.directory}).encode()
        socket.send_fds(rendezvous, [words], [control.fileno()])
        return pid

    arrange()
    kernel = TestKernel()
    kernel.unshare(CLONE_NEWNS)
    MakePrivate().execute(kernel, State())
    assert wherry_guest.__file__
    Pid1(
        kernel, Layout(**json.loads(sys.argv[2])), launch, lambda line: print(line, flush=True)
    ).run()


if __name__ == "__main__":
    main()
