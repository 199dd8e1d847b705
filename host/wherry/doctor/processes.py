"""Checks of engines and QEMUs: who runs, who hangs, and what those that are gone left behind."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from wherry import __version__
from wherry.client import Client
from wherry.doctor.finding import Context, Finding, fail, ok, warn
from wherry.doctor.host import FIX
from wherry.errors import MachineError
from wherry.hung import end_engine
from wherry.machine.endpoints import CHARDEVS
from wherry.machine.qmp import Qmp
from wherry.machine.record import read_record
from wherry.osutil import LockHeld, is_alive, lock_file
from wherry.osutil.pipes import PipeConnection
from wherry.osutil.pulse import BEAT_SECONDS, Watch, read_holder
from wherry.paths import MachinePaths

_ANSWER_SECONDS = 3.0
_QMP_SECONDS = 3.0
_LOOK_SECONDS = 0.25
_READ_BYTES = 65536

_SAYINGS = {
    "running": "it runs",
    "paused": "it is paused: somebody stopped it through QMP",
    "io-error": "it is paused: a write of its disk failed, most likely the host's disk is full",
    "internal-error": "it stands still: the accelerator failed",
    "shutdown": "its guest has ended",
    "guest-panicked": "its kernel has given up",
    "prelaunch": "it has not begun to run",
    "inmigrate": "it is being restored",
    "postmigrate": "it has been saved and stands still",
}
"""RunState (qapi/run-state.json) in words."""
_FINE = ("running", "prelaunch", "inmigrate")


def engines(context: Context) -> Iterator[Finding]:
    for name in context.machines:
        yield _engine(context, name)


def _engine(context: Context, name: str) -> Finding:
    paths = context.home.machine(name)
    title = f"engine {name}"
    lock = _lock_holder(paths)
    holder = read_holder(paths.engine_record)
    if lock is None:
        if holder is not None and not is_alive(holder.identity):
            return warn(
                title,
                f"none runs; the last one (process {holder.identity.pid}) did not end properly",
                FIX,
                lambda: _removed([paths.engine_record]),
            )
        return ok(title, "none runs; the next command starts one")
    if ask_engine(paths, "/_ping") is not None:
        version = holder.version if holder else "an older version"
        if holder and version != __version__:
            return warn(
                title,
                f"version {version} runs, this is {__version__}",
                f"{FIX} ends it; the next command starts this version's, the machine runs on",
                lambda: _ended(context, name),
            )
        return ok(title, f"version {version} runs as process {lock} and answers")
    return _silent_engine(title, name, paths, lock)


def _silent_engine(title: str, name: str, paths: MachinePaths, pid: int) -> Finding:
    watch = Watch(paths.engine_record)
    until = time.monotonic() + BEAT_SECONDS * 3
    while time.monotonic() < until:
        if watch.beating:
            return warn(title, f"process {pid} is busy: it lives, but does not answer yet")
        time.sleep(_LOOK_SECONDS)
    holder = read_holder(paths.engine_record)
    if holder is None or holder.identity.pid != pid:
        return fail(title, f"process {pid} holds its lock and does not answer", "end that process")

    def replace() -> str:
        end_engine(paths, name, holder.identity)
        return f"the hung engine (process {pid}) was ended; the next command starts a new one"

    return fail(
        title, f"process {pid} hangs: it does not answer and its heart has stopped", FIX, replace
    )


def _ended(context: Context, name: str) -> str:
    client = Client(context.home, name)
    try:
        client.request("POST", "/wherry/v1/engine/stop")
    finally:
        client.close()
    return "the older engine was ended"


def _lock_holder(paths: MachinePaths) -> int | None:
    """The pid of whoever holds the engine's lock, 0 when it is not known; None: nobody."""
    if not paths.engine_lock.exists():
        return None
    try:
        with lock_file(paths.engine_lock, timeout=0, look=True):
            return None
    except LockHeld as error:
        return error.holder


class _PipeSocket:
    """As much of a socket as an answer that ends with its connection needs."""

    def __init__(self, path: Path) -> None:
        self._pipe = PipeConnection(path)

    def sendall(self, data: bytes) -> None:
        self._pipe.sendall(data)

    def makefile(self, _mode: str) -> io.BytesIO:
        deadline = time.monotonic() + _ANSWER_SECONDS
        answer = b""
        while self._pipe.readable(max(deadline - time.monotonic(), 0)):
            if not (data := self._pipe.recv(_READ_BYTES)):
                return io.BytesIO(answer)
            answer += data
        raise TimeoutError

    def close(self) -> None:
        self._pipe.close()


class _Api(http.client.HTTPConnection):
    """HTTP over the engine's socket, or its pipe."""

    def __init__(self, path: Path) -> None:
        super().__init__("engine", timeout=_ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        if sys.platform == "win32":
            self.sock = _PipeSocket(self._path)
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_ANSWER_SECONDS)
        self.sock.connect(os.fspath(self._path))


def ask_engine(paths: MachinePaths, target: str) -> str | None:
    """The answer to a GET, None when there is none soon; starts nothing, never waits for long."""
    connection = _Api(paths.api_socket)
    try:
        connection.request("GET", target, headers={"Connection": "close"})
        reply = connection.getresponse()
        return reply.read().decode("utf-8", "replace") if reply.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def machines(context: Context) -> Iterator[Finding]:
    """Asked through the second control socket, which nobody else uses."""
    for name in context.machines:
        yield _machine(name, context.home.machine(name))


def _machine(name: str, paths: MachinePaths) -> Finding:
    title = f"machine {name}"
    record = read_record(paths.qemu_record)
    if record is None or not is_alive(record.identity):
        stale = [path for path in (paths.qemu_record, *_chardevs(paths)) if path.exists()]
        if record is None and not _left(paths, stale):
            return ok(title, "it is off")
        return warn(
            title,
            "it is off; its QEMU did not end properly",
            FIX,
            lambda: _clear(paths, stale),
        )
    try:
        status = asyncio.run(_query(paths.rescue_socket))
    except MachineError as error:
        return fail(
            title,
            f"QEMU (process {record.identity.pid}) does not answer: {error.message}",
            "wherry machine stop ends it; what was acknowledged is on its disk",
        )
    said = _SAYINGS.get(status, f"its state is {status}")
    if status in _FINE:
        return ok(title, f"{said} (process {record.identity.pid}, {record.accel})")
    fix = "make room on the host's disk; " if status == "io-error" else ""
    return warn(title, said, f"{fix}wherry machine start lets it go on")


async def _query(path: Path) -> str:
    qmp = await Qmp.connect(path, timeout=_QMP_SECONDS)
    try:
        return str((await qmp.execute("query-status", timeout=_QMP_SECONDS))["status"])
    finally:
        await qmp.aclose()


def _chardevs(paths: MachinePaths) -> list[Path]:
    return [paths.chardev(name) for name in CHARDEVS]


def _left(paths: MachinePaths, stale: list[Path]) -> bool:
    """Whether files tell of a QEMU that is gone; while an engine works they are its business."""
    return bool(stale) and _lock_holder(paths) is None


def _clear(paths: MachinePaths, stale: list[Path]) -> str:
    """Under the engine's lock, so that no start is under way."""
    with lock_file(paths.engine_lock, timeout=0):
        return _removed(stale)


def stale_sockets(context: Context) -> Iterator[Finding]:
    """API sockets that nobody listens on: Docker's clients say that the connection is refused."""
    if sys.platform == "win32":
        return
    stale = [
        paths.api_socket
        for name in context.machines
        if (paths := context.home.machine(name)).api_socket.exists()
        and _refused(paths.api_socket)
        and _lock_holder(paths) is None
    ]
    if stale:
        yield warn(
            "sockets",
            f"nobody listens on {', '.join(map(str, stale))}",
            FIX,
            lambda: _removed(stale),
        )
    else:
        yield ok("sockets", "no stale ones")


def _refused(path: Path) -> bool:
    if sys.platform == "win32":
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_ANSWER_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def other_qemus(context: Context) -> Iterator[Finding]:
    """A QEMU that nobody has a record of, with a machine's disk: it keeps the disk locked."""
    if sys.platform == "win32":
        return
    disks = {os.fspath(context.home.machine(it).data_disk): it for it in context.machines}
    recorded = {
        record.identity.pid
        for name in context.machines
        if (record := read_record(context.home.machine(name).qemu_record)) is not None
    }
    found = [
        (pid, disks[disk])
        for pid, line in _command_lines()
        if pid not in recorded and "qemu-system" in line
        for disk in disks
        if disk in line
    ]
    for pid, name in found:
        yield fail(
            "other-qemu",
            f"process {pid} is a QEMU with the disk of machine {name!r} that no record names",
            f"wherry machine start {name} takes care of it; if it does not, end that process",
        )


def _command_lines() -> Iterator[tuple[int, str]]:
    if sys.platform == "darwin":
        argv = ["/bin/ps", "-axww", "-o", "pid=,command="]
        done = subprocess.run(argv, capture_output=True, timeout=5, check=False)
        yield from of_ps(done.stdout.decode(errors="replace"))
        return
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):  # it ended, or is not ours to read
                text = (directory / "cmdline").read_bytes().decode(errors="replace")
                yield int(directory.name), text


def of_ps(text: str) -> Iterator[tuple[int, str]]:
    """The pids and command lines of `ps -o pid=,command=`, which are not cut off."""
    for line in text.splitlines():
        pid, _, command = line.strip().partition(" ")
        if pid.isdigit():
            yield int(pid), command


def _removed(paths: list[Path]) -> str:
    for path in paths:
        path.unlink(missing_ok=True)
    return f"removed {', '.join(path.name for path in paths)}"
