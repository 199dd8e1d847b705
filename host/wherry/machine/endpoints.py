"""How QEMU's chardevs are reached: what its command line says of them, and how it is started.

    Inherited   QEMU inherits listening Unix sockets that were bound here (macOS, Linux)
    DialOut     QEMU connects once to a keeper, which holds its connections (Windows)

However QEMU is started, afterwards each chardev answers at its name in `MachinePaths`, to this
engine and to later ones, one client at a time.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from wherry.errors import MachineError
from wherry.keeper.plan import HOST, Plan, dump, load_report, port_mark
from wherry.osutil import (
    ProcessIdentity,
    atomic_write,
    exit_status,
    identify,
    listen_unix,
    spawn_detached,
)
from wherry.paths import MachinePaths

MONITORS = ("qmp", "rescue")
STREAMS = ("agent", "serial")
CHARDEVS = (*MONITORS, *STREAMS)

_KEEPER_END_SECONDS = 5.0

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
    """A way to start QEMU and to make its chardevs answer. Blocking: call it in a thread.

    Attributes:
        passes_files: descriptors that are sent to the monitor reach QEMU, so that it can save and
            load its state through one.
    """

    passes_files: ClassVar[bool]

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

    passes_files: ClassVar[bool] = True

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


class DialOut:
    """A keeper starts QEMU and holds its connections: `wherry.keeper` says why, and how.

    Where no process can inherit a socket; on Linux for tests.
    """

    passes_files: ClassVar[bool] = False

    def launch(
        self,
        command: Callable[[Chardevs], Sequence[str]],
        paths: MachinePaths,
        env: Mapping[str, str] | None,
    ) -> Spawned:
        dialling = {
            name: f"host={HOST},port={port_mark(name)},server=off,nodelay=on" for name in CHARDEVS
        }
        plan = Plan(
            argv=list(command(dialling)),
            env=None if env is None else dict(env),
            monitors={name: os.fspath(paths.chardev(name)) for name in MONITORS},
            streams={name: os.fspath(paths.chardev(name)) for name in STREAMS},
        )
        atomic_write(paths.keeper_plan, dump(plan))
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as answer:
            try:
                child = spawn_detached(
                    [sys.executable, "-m", "wherry.keeper", os.fspath(paths.keeper_plan)],
                    log=paths.qemu_log,
                    cwd=paths.root,
                    stdout=writing,
                )
            finally:
                os.close(writing)
            line = answer.readline()  # it gives up by itself when QEMU does not come up
        if not line.endswith(b"\n"):
            raise QemuEnded(exit_status(child, within=_KEEPER_END_SECONDS))
        report = load_report(line)
        identity = ProcessIdentity(report.pid, report.start_time)
        return Spawned(identity, child, tuple(report.argv))


def default_endpoints() -> Endpoints:
    """This system's."""
    return DialOut() if sys.platform == "win32" else Inherited()


def forget_sockets(paths: MachinePaths) -> None:
    """Remove what a QEMU that is gone has left. Pipes go by themselves."""
    if paths.pipe is None:
        for name in CHARDEVS:
            paths.chardev(name).unlink(missing_ok=True)
