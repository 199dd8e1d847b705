"""PID 1's very loop with the very agent, for tests: `agent_process.py pid1|agent JSON [FD]`.

JSON is `Setting`. The agent's port is a Unix socket on which it listens, since there is no virtio
here; everything else is what runs in the VM. PID 1 lives in a mount namespace of its own.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from wherry_guest.agent.paths import Paths
from wherry_guest.agent.server import Agent, report
from wherry_guest.core.child import close_others, reset_signals
from wherry_guest.core.pid1 import Pid1, Program
from wherry_guest.core.plan import Layout
from wherry_guest.core.root import MakePrivate
from wherry_guest.core.steps import State
from wherry_guest.core.syscalls import CLONE_NEWNS, Kernel
from wherry_guest.loop import Loop
from wherry_guest.zygote import Zygote


@dataclass(frozen=True)
class Setting:
    """Where a test's machine is: a directory, and a cgroup of its own."""

    root: str
    cgroups: str

    @property
    def port(self) -> Path:
        return Path(self.root, "agent.sock")

    @property
    def paths(self) -> Paths:
        return Paths(Path(self.root, "run"), Path(self.root, "data"), Path(self.cgroups))

    @property
    def layout(self) -> Layout:
        run = self.paths.run
        return Layout(str(run / "l"), str(run / "root"), self.cgroups, None)


class TestKernel(Kernel):
    """The real kernel, but power-off ends this process only."""

    def reboot(self, command: int) -> None:
        os._exit(0)


def run_pid1(setting: Setting) -> None:
    kernel = TestKernel()
    kernel.unshare(CLONE_NEWNS)
    MakePrivate().execute(kernel, State())

    def launch(control: socket.socket, program: Program) -> int:
        pid = os.fork()
        if pid == 0:
            fd = control.detach()
            reset_signals()
            close_others(kernel, [fd])
            exec_agent(setting, fd, program)
        return pid

    Pid1(kernel, setting.layout, launch, lambda line: print(line, flush=True)).run()


def exec_agent(setting: Setting, control: int, program: Program) -> NoReturn:
    os.set_inheritable(control, True)
    environ = dict(os.environ)
    if program.directory is not None:
        environ["PYTHONPATH"] = f"{program.directory}{os.pathsep}{environ['PYTHONPATH']}"
        environ["WHERRY_AGENT_DIGEST"] = program.digest
    words = [sys.executable, "-B", __file__, "agent", json.dumps(asdict(setting)), str(control)]
    os.execve(sys.executable, words, environ)


def run_agent(setting: Setting, control: int) -> None:
    os.set_inheritable(control, False)
    setting.port.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(setting.port))
    listener.listen()
    listener.setblocking(False)
    loop = Loop(report)
    agent = Agent(
        loop,
        Zygote(control),
        lambda: listener.accept()[0].detach(),
        setting.paths,
        TestKernel(),
        lambda: print(f"agent {os.getpid()}", flush=True),
    )
    agent.start()
    loop.run()


if __name__ == "__main__":
    role, words, *rest = sys.argv[1:]
    if role == "pid1":
        run_pid1(Setting(**json.loads(words)))
    else:
        run_agent(Setting(**json.loads(words)), int(rest[0]))
