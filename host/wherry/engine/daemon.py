"""The engine process: one engine, the API in front of it, from lock to clean end.

This is the composition root: the only place of this package that knows `wherry.api`. The end of the
process leaves QEMU running; the next engine takes it over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from wherry import __version__
from wherry.api.server import serve
from wherry.engine.doorstep import Doorstep
from wherry.engine.engine import Engine
from wherry.machine import Machine
from wherry.osutil import identify, is_alive, lock_file, private_directory
from wherry.osutil.pulse import BEAT_SECONDS, Pulse
from wherry.paths import Home
from wherry.settings import Settings

log = logging.getLogger(__name__)

LOCK_SECONDS = 10.0
"""How long an engine that is just ending may keep the lock."""

LOG_BYTES = 4 * 1024 * 1024
"""engine.log is cut when it is longer than this; its last `LOG_KEPT` bytes stay."""

LOG_KEPT = 256 * 1024


@dataclass(frozen=True, slots=True)
class Start:
    """By whom this process was started.

    Attributes:
        spawned_ns: when a client did, since the epoch.
        service: the session's manager did: the machine is started for containers that want to run.
        activated: and that one holds the listener.
        reading: the pid of a client for whom this engine only reads, since nothing can be written.
    """

    spawned_ns: int | None = None
    service: bool = False
    activated: bool = False
    reading: int | None = None


def run(
    home: Home,
    machine: str,
    settings: Settings,
    listener: socket.socket | Path,
    start: Start = Start(),
) -> None:
    """Serve the machine's API on `listener` until a signal or a client asks for the end.

    Args:
        listener: a listening socket; on Windows the path of the pipe to serve.
        start: by whom.

    Raises:
        LockHeld: another engine serves this machine.
        WherryError: the state or a running machine cannot be taken over.
    """
    paths = home.machine(machine)
    if start.reading is not None:
        asyncio.run(_serve(home, machine, settings, listener, _Client(start.reading), start))
        return
    private_directory(paths.root)
    with lock_file(paths.engine_lock, timeout=LOCK_SECONDS):
        log.info("engine of machine %s, process %d", machine, os.getpid())
        pulse = Pulse(paths.engine_record, __version__)
        try:
            asyncio.run(_serve(home, machine, settings, listener, pulse, start))
        finally:
            pulse.end()
        log.info("engine of machine %s ends", machine)


async def _serve(
    home: Home,
    name: str,
    settings: Settings,
    listener: socket.socket | Path,
    pulse: Pulse | _Client,
    start: Start,
) -> None:
    stop, ended = asyncio.Event(), asyncio.Event()

    def end() -> None:
        ended.set()
        stop.set()

    _on_signals(end)
    paths = home.machine(name)
    hidden = paths.pipe is not None or start.reading is not None
    door = Doorstep(None if hidden else paths.api_socket)
    beating = asyncio.ensure_future(_beat(pulse, door, end))  # also while a machine is taken over
    try:
        while not ended.is_set():
            stop.clear()
            await _serve_once(home, name, settings, listener, start, stop, end)
            start = replace(start, spawned_ns=None, service=False)
    finally:
        beating.cancel()


async def _serve_once(
    home: Home,
    name: str,
    settings: Settings,
    listener: socket.socket | Path,
    start: Start,
    stop: asyncio.Event,
    end: Callable[[], None],
) -> None:
    """One engine, until `stop` is set: for good (`end`), or for the next engine to begin with what
    lies on disk then."""
    machine = Machine(name, home, settings)
    only_reads = start.reading is not None
    engine = await Engine.open(home, name, settings, machine=machine, only_reads=only_reads)
    engine.on_exit_request = end
    engine.on_reopen_request = stop.set
    engine.presence.activated = start.activated
    if start.spawned_ns is not None:
        machine.timeline.engine_ready(start.spawned_ns)
    if start.service:
        engine.machine_if_wanted()
    own = listener if isinstance(listener, Path) else listener.dup()  # it is closed with its server
    try:
        await serve(engine, own, stop)
    finally:
        await engine.aclose()


class _Client:
    """In place of a heartbeat where none can be written: a client that waits for this engine."""

    def __init__(self, pid: int) -> None:
        self._identity = identify(pid)

    def beat(self) -> None:
        """Raises ProcessLookupError when it is gone."""
        if self._identity is None or not is_alive(self._identity):
            raise ProcessLookupError("the client that this engine reads for is gone")


async def _beat(pulse: Pulse | _Client, door: Doorstep, end: Callable[[], None]) -> None:
    """On the loop, so that it tells whether the loop turns."""
    said = ""
    while True:
        if door.lost():
            log.warning("clients do not find this engine: its socket is gone, so it ends")
            end()
        try:
            pulse.beat()
        except ProcessLookupError:
            end()
        except OSError as error:
            if said != str(error):
                said = str(error)
                log.warning("there is no heartbeat: %s", error)
        await asyncio.sleep(BEAT_SECONDS)


def _on_signals(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        if sys.platform == "win32":  # its event loop has no signal handlers
            signal.signal(number, lambda _number, _frame: loop.call_soon_threadsafe(stop))
        else:
            loop.add_signal_handler(number, stop)


def start_logging(log_file: Path) -> None:
    """Log to standard error; where that is `log_file`, its size is bounded."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[BoundedHandler(sys.stderr, log_file)],
    )


class BoundedHandler(logging.StreamHandler[TextIO]):
    """A stream handler that cuts off the beginning of `log_file` when it outgrows `limit`."""

    def __init__(
        self, stream: TextIO, log_file: Path, *, limit: int = LOG_BYTES, kept: int = LOG_KEPT
    ) -> None:
        super().__init__(stream)
        self._log_file = log_file
        self._limit = limit
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        try:
            self._bound(self.stream.fileno())
        except (OSError, ValueError):
            self.handleError(record)

    def _bound(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size <= self._limit:
            return
        if not os.path.samestat(status, self._log_file.stat()):
            return  # somebody else's file
        with self._log_file.open("rb") as file:
            file.seek(-self._kept, os.SEEK_END)
            tail = file.read()
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, tail[tail.find(b"\n") + 1 :])
