"""An engine is started for a client: its listener is bound here and inherited, so nobody polls.

On a full disk the reserves are given up for it. Where nothing can be written at all, an engine for
this client alone reads what is there (`reading_engine`): its socket is in the system's temporary
folder, and it ends with the client.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from wherry.connection import Connection, connect
from wherry.errors import EngineUnreachable, StorageError
from wherry.paths import Home, MachinePaths

START_DEADLINE = 30.0
"""Seconds that another client may take to start the engine."""

_PIPE_POLL_SECONDS = 0.02

_LOG_HEAD = re.compile(r"\d{4}-\d\d-\d\d \S+ [A-Z]+ [\w.]+: ")
"""As `engine.daemon.start_logging` has it."""

T = TypeVar("T")


def start_engine(home: Home, machine: str) -> Connection:
    """Start the engine of `machine` unless another client just did; returns a connection to it.

    Raises:
        EngineUnreachable: it could not be started.
        StorageError: the state directory takes nothing; `cannot_write` tells of which kind.
    """
    from wherry.osutil import lock_file, private_directory

    paths = home.machine(machine)

    def start() -> Connection:
        private_directory(home.root)
        private_directory(paths.root)
        private_directory(paths.sockets)
        with lock_file(paths.start_lock, timeout=START_DEADLINE):
            try:
                return connect(paths)
            except OSError:
                pass  # still none: it is ours to start
            if paths.pipe is not None:
                return _await_pipe(paths, _spawn_engine(home, machine, subprocess.DEVNULL))
            return listen_and_spawn(home, machine)

    try:
        return _with_reserves(paths, home, start)
    except OSError as error:
        raise EngineUnreachable(f"cannot start the engine: {error}") from error


def listen_and_spawn(home: Home, machine: str) -> Connection:
    """A connection to the engine that is started for it. Hold the start lock."""
    from wherry.osutil import listen_unix

    paths = home.machine(machine)
    with listen_unix(paths.api_socket) as listener:
        _spawn_engine(home, machine, listener.fileno())
        return connect(paths)


def cannot_write(error: BaseException) -> bool:
    """Whether `start_engine` has failed for a state directory that is there, to be read only."""
    from wherry.osutil import is_refused

    cause = error.__cause__
    return sys.platform != "win32" and isinstance(cause, OSError) and is_refused(cause)


def reading_engine(home: Home, machine: str) -> Path:
    """Start an engine that reads, for this process; the path of its socket.

    Raises:
        OSError, StorageError: there is no room for a socket either.
    """
    from wherry.osutil import listen_unix, spawn_detached

    directory = Path(tempfile.mkdtemp(prefix="wherry-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    socket = directory / "api.sock"
    with listen_unix(socket) as listener:
        spawn_detached(
            [*_command(machine), "--inherited", "--reading", str(os.getpid())],
            log=directory / "engine.log",
            cwd=home.root,
            env={**os.environ, "WHERRY_HOME": os.fspath(home.root)},
            stdin=listener.fileno(),
        )
    return socket


def last_line(log: Path) -> str:
    """The last line of an engine's log that is no mere information, without its time and place;
    empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    words = [line for line in lines if " INFO " not in line]
    return _LOG_HEAD.sub("", words[-1]) if words else ""


def _with_reserves(paths: MachinePaths, home: Home, work: Callable[[], T]) -> T:
    """`work`, once more when the disk is full and there was a reserve."""
    from wherry.osutil.reserve import Reserve

    try:
        return work()
    except (OSError, StorageError):
        released = [Reserve(it).release_when_full() for it in (paths.root, home.root)]
        if not any(released):
            raise
    return work()


def _spawn_engine(home: Home, machine: str, stdin: int) -> int:
    """Its pid. `stdin`: the listening socket that it inherits, where it does."""
    from wherry.osutil import spawn_detached

    paths = home.machine(machine)
    inherited = ["--inherited"] if paths.pipe is None else []
    return spawn_detached(
        [*_command(machine), *inherited, "--spawned-ns", str(time.time_ns())],
        log=paths.engine_log,
        cwd=home.root,
        env={**os.environ, "WHERRY_HOME": os.fspath(home.root)},
        stdin=stdin,
    )


def _command(machine: str) -> list[str]:
    return [sys.executable, "-m", "wherry.engine", "--machine", machine]


def _await_pipe(paths: MachinePaths, engine: int) -> Connection:
    """Connect to an engine that was just started; wait for as long as it lives, as for a socket's
    answer: it serves once it has taken over what runs."""
    from wherry.osutil import exit_status

    while True:
        try:
            return connect(paths)
        except FileNotFoundError as error:
            if exit_status(engine, within=_PIPE_POLL_SECONDS) is not None:
                message = f"the engine ended: {last_line(paths.engine_log)}"
                raise EngineUnreachable(message, hint=f"see {paths.engine_log}") from error
