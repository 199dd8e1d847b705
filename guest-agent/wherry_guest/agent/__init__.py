"""The agent: PID 1's child that serves the host's calls (docs/agent-calls.md).

Rules: stdlib only, one thread, nothing blocks for long (work that takes time is a child process or
is done in slices); everything that must survive this process is with PID 1 or on a disk.
"""

from __future__ import annotations

import os


def main(control_fd: int) -> None:
    """Serve until PID 1 goes or replaces us.

    Args:
        control_fd: the socket to PID 1 (see `wherry_guest.zygote`).
    """
    from wherry_guest.agent.paths import Paths
    from wherry_guest.agent.server import Agent, report
    from wherry_guest.channel import open_agent_port
    from wherry_guest.core.syscalls import Kernel
    from wherry_guest.loop import Loop
    from wherry_guest.zygote import Zygote

    # posix_spawnp(3) searches the PATH of the process that spawns.
    os.environ.setdefault("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    loop = Loop(report)
    zygote = Zygote(control_fd)
    agent = Agent(loop, zygote, open_agent_port, Paths(), Kernel(), _announce)
    agent.start()
    loop.run()


def _announce() -> None:
    """The line that the host's boot supervisor waits for."""
    os.write(2, b"wherry: agent\n")
