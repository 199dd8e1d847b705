"""PID 1's very loop in a process of its own, for tests: `pid1_process.py SOCKET_FD JSON_LAYOUT`.

It lives in its own mount namespace. Instead of running an agent it hands the agent's end of the
control socket to the test over SOCKET_FD, with the pid of a process that stands for the agent.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

import wherry_guest
from wherry_guest.core.pid1 import Pid1, Program
from wherry_guest.core.plan import Layout
from wherry_guest.core.root import MakePrivate
from wherry_guest.core.steps import State
from wherry_guest.core.syscalls import CLONE_NEWNS, Kernel


class TestKernel(Kernel):
    """The real kernel, but power-off ends this process only."""

    def reboot(self, command: int) -> None:
        os._exit(0)


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

    kernel = TestKernel()
    kernel.unshare(CLONE_NEWNS)
    MakePrivate().execute(kernel, State())
    assert wherry_guest.__file__
    Pid1(
        kernel, Layout(**json.loads(sys.argv[2])), launch, lambda line: print(line, flush=True)
    ).run()


if __name__ == "__main__":
    main()
