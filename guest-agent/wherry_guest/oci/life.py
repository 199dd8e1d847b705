"""`state`, `ps`, `kill`, `delete`, `pause`, `resume`: what is done to a container that is there.

Rules: every command names the state that it needs; an operation in the wrong one changes nothing.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from wherry_guest.core.hooks import STATE_VERSION, HookState, run_hooks
from wherry_guest.core.steps import SetupError
from wherry_guest.oci import cgroup
from wherry_guest.oci.bundle import hooks_of
from wherry_guest.oci.errors import OciError
from wherry_guest.oci.store import Entry, Status

if TYPE_CHECKING:
    from wherry_guest.oci.context import Context

LIVE: Final = (Status.CREATED, Status.RUNNING, Status.PAUSED)

_os: Final[Any] = os
_select: Final[Any] = select
_signal: Final[Any] = signal


def state(context: Context, id: str) -> dict[str, Any]:
    """The runtime spec's state, with runc's additions; OciError."""
    return describe(context.store.find(id))


def describe(entry: Entry) -> dict[str, Any]:
    record, status = entry.record, entry.status()
    return {
        "ociVersion": STATE_VERSION,
        "id": record.id,
        "pid": record.pid if status in LIVE else 0,
        "status": status.value,
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "annotations": record.annotations,
        "owner": "",
    }


def kill(context: Context, id: str, number: int, everything: bool) -> None:
    """Send a signal to the container's first process, or to all of them; OciError."""
    with context.store.find(id).lock() as entry:
        if everything:
            _kill_all(entry, number)
            return
        require(entry, LIVE, "is not running")
        try:
            fd = _os.pidfd_open(entry.record.pid)
        except ProcessLookupError as error:
            raise OciError(f"container {id} is not running") from error
        try:
            _signal.pidfd_send_signal(fd, number)
        except OSError as error:
            raise OciError(f"signal {number} to container {id}: {error.strerror}") from error
        finally:
            os.close(fd)


def _kill_all(entry: Entry, number: int) -> None:
    directory = entry.record.cgroup
    if directory is not None and number == _signal.SIGKILL and Path(directory).is_dir():
        cgroup.kill(directory)
        return
    for pid in processes(entry):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def delete(context: Context, id: str, force: bool) -> None:
    """Remove a stopped (or created) container; with force any, and none is fine; OciError."""
    if force and not (context.store.root / id).is_dir():
        return
    with context.store.find(id).lock() as entry:
        status = entry.status()
        if not force and status not in (Status.STOPPED, Status.CREATED):
            raise OciError(f"cannot delete container {id} that is not stopped: {status.value}")
        destroy(context, entry)


def destroy(context: Context, entry: Entry) -> None:
    """Kill what is left, remove the cgroup and the record, run `poststop`."""
    record = entry.record
    if entry.alive():
        _kill_and_wait(record.pid)
    if record.cgroup is not None:
        cgroup.remove(record.cgroup, record.cgroups_made)
    hooks = hooks_of(entry.config())
    context.store.remove(entry)
    about = HookState(record.id, record.bundle, tuple(record.annotations.items()))
    for hook in hooks.at("poststop"):
        try:
            run_hooks(context.kernel, "poststop", [hook], about.document("stopped", 0))
        except SetupError as error:
            context.log.warning(error.message)


def _kill_and_wait(pid: int) -> None:
    try:
        fd = _os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        _signal.pidfd_send_signal(fd, _signal.SIGKILL)
        poller = _select.poll()
        poller.register(fd, _select.POLLIN)
        if not poller.poll(cgroup.DEADLINE * 1000):
            raise OciError(f"waited {cgroup.DEADLINE:.0f} s for process {pid} to end")
    except ProcessLookupError:
        return
    finally:
        os.close(fd)


def pause(context: Context, id: str) -> None:
    """Freeze everything in the container; OciError."""
    with context.store.find(id).lock() as entry:
        require(entry, (Status.RUNNING, Status.CREATED), "is not running")
        cgroup.freeze(_cgroup_of(entry), True)


def resume(context: Context, id: str) -> None:
    """Thaw it; OciError."""
    with context.store.find(id).lock() as entry:
        require(entry, (Status.PAUSED,), "is not paused")
        cgroup.freeze(_cgroup_of(entry), False)


def require(entry: Entry, wanted: Sequence[Status], words: str) -> None:
    """Raises OciError when the container is in another state."""
    status = entry.status()
    if status not in wanted:
        raise OciError(f"container {entry.id} {words}: {status.value}")


def _cgroup_of(entry: Entry) -> str:
    if entry.record.cgroup is None:
        raise OciError(f"container {entry.id} has no cgroup")
    return entry.record.cgroup


def processes(entry: Entry) -> list[int]:
    """The pids of everything in the container: by its cgroup, else by its pid namespace."""
    if entry.record.cgroup is not None:
        return cgroup.pids(entry.record.cgroup)
    if not entry.alive():
        return []
    namespace = _namespace(entry.record.pid)
    if namespace == _namespace(os.getpid()):
        return [entry.record.pid]
    pids = sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    return [pid for pid in pids if _namespace(pid) == namespace]


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115 - a magic link, no path
    except OSError:
        return ""


def ps(context: Context, id: str, form: str, arguments: Sequence[str]) -> str:
    """The container's processes: a JSON list of pids, or ps(1)'s lines about them; OciError."""
    entry = context.store.find(id)
    require(entry, LIVE, "is not running")
    pids = processes(entry)
    if form == "json":
        return json.dumps(pids) + "\n"
    program = shutil.which("ps")
    if program is None:
        raise OciError("there is no ps(1) on this host: use --format json")
    command = [program, *(arguments or ["-ef"])]
    listing = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = listing.stdout.splitlines()
    if listing.returncode or not lines or "PID" not in lines[0].split():
        raise OciError(f"{' '.join(command)} gives no column PID: {listing.stderr.strip()}")
    column = lines[0].split().index("PID")
    chosen = [line for line in lines[1:] if line.split()[column] in map(str, pids)]
    return "\n".join([lines[0], *chosen]) + "\n"


def signal_number(text: str) -> int:
    """A number, a name, or a name with SIG; OciError."""
    if text.isdigit():
        if 0 < int(text) < _signal.NSIG:
            return int(text)
        raise OciError(f"unknown signal {text!r}")
    name = text.upper().removeprefix("SIG")
    if name.startswith(("RTMIN+", "RTMAX-")):
        base, offset = name[:5], name[5:]
        if offset[1:].isdigit():
            number = int(getattr(_signal, f"SIG{base}")) + int(offset)
            if _signal.SIGRTMIN <= number <= _signal.SIGRTMAX:
                return number
    found = getattr(_signal, f"SIG{name}", None)
    if not isinstance(found, signal.Signals):
        raise OciError(f"unknown signal {text!r}")
    return int(found)
