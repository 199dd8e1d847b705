"""How QEMU's chardevs are reached: what its command line says of them, and how it is started.

    Inherited   QEMU inherits listening Unix sockets that were bound here (macOS, Linux)

However QEMU is started, afterwards each chardev answers at its name in `MachinePaths`, to this
engine and to later ones, one client at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wherry.errors import MachineError
from wherry.osutil import ProcessIdentity, exit_status, identify, listen_unix, spawn_detached
from wherry.paths import MachinePaths

CHARDEVS = ("qmp", "rescue", "agent", "serial")

Chardevs = Mapping[str, str]
"""A chardev's name to its options on the command line, behind `socket,id=NAME,`."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """A QEMU that was started.

    Attributes:
        identity: QEMU's.
        child: the process of ours whose exit status is QEMU's.
        argv: QEMU's command line.
    """

    identity: ProcessIdentity
    child: int
    argv: tuple[str, ...]


class QemuEnded(MachineError):
    """QEMU ended before anything could be asked of it; `status` is its exit status when known."""

    def __init__(self, status: int | None) -> None:
        super().__init__("QEMU ended at once")
        self.status = status


class Endpoints(Protocol):
    """A way to start QEMU and to make its chardevs answer. Blocking: call it in a thread."""

    def launch(
        self,
        command: Callable[[Chardevs], Sequence[str]],
        paths: MachinePaths,
        env: Mapping[str, str] | None,
    ) -> Spawned:
        """Start QEMU, detached; its stderr goes to `paths.qemu_log`.

        Args:
            command: the command line for these chardevs.

        Raises:
            OSError: it could not be executed.
            QemuEnded: it ended.
        """


class Inherited:
    """Listening sockets (mode 0600) that QEMU inherits: they answer before it has started, nobody
    waits for a file to appear, and they close when it dies."""

    def launch(
        self,
        command: Callable[[Chardevs], Sequence[str]],
        paths: MachinePaths,
        env: Mapping[str, str] | None,
    ) -> Spawned:
        with contextlib.ExitStack() as stack:

            def listen(path: Path) -> int:
                return stack.enter_context(listen_unix(path)).fileno()

            fds = {name: listen(paths.chardev(name)) for name in CHARDEVS}
            argv = command({name: f"fd={fd},server=on,wait=off" for name, fd in fds.items()})
            child = spawn_detached(
                argv, log=paths.qemu_log, cwd=paths.root, env=env, pass_fds=tuple(fds.values())
            )
        identity = identify(child)
        if identity is None:
            raise QemuEnded(exit_status(child))
        return Spawned(identity, child, tuple(argv))
