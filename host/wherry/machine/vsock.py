"""The machine's vsock on a Linux host: the kernel's own device, or a daemon that is one.

The kernel's (`vhost_vsock`) needs nothing but permission to open /dev/vhost-vsock. The daemon
(vhost-device-vsock, rust-vmm) shares the guest's memory, and is started and ended with QEMU;
`vsock.json` names it, so that a later engine can end it when QEMU has died alone. Blocking.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from wherry.errors import InvalidInput, MachineError
from wherry.link import Connect
from wherry.link.vsock import Secrets, daemon_vsock, kernel_vsock
from wherry.osutil import (
    ProcessIdentity,
    atomic_write,
    exit_status,
    identify,
    kill,
    spawn_detached,
    wait_gone,
)
from wherry.paths import MachinePaths

DEVICE = Path("/dev/vhost-vsock")
DAEMON = "vhost-device-vsock"

_FIRST_CID, _CIDS = 3, (1 << 31) - 3
"""0 to 2 are taken (uapi/linux/vm_sockets.h); of all others one at random is hardly another's."""

_DAEMON_PATIENCE = 5.0
_POLL_SECONDS = 0.01
_END_PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class Vsock:
    """One machine's.

    Attributes:
        cid: the guest's number.
        vhost: the daemon's socket for QEMU; None: the kernel's device.
    """

    cid: int
    vhost: Path | None = None


@dataclass(frozen=True, slots=True)
class _Record:
    cid: int
    daemon: ProcessIdentity | None


def check_vsock() -> None:
    """Raises InvalidInput where no machine can have one."""
    if sys.platform != "linux":
        raise InvalidInput("only Linux hosts have vsocks", hint="--link serial or ssh")
    _way()


def start_vsock(paths: MachinePaths) -> Vsock:
    """What QEMU is started with; the daemon runs, where one is needed.

    Raises:
        InvalidInput: this host has neither. MachineError: the daemon does not start.
    """
    forget_vsock(paths)
    cid = _FIRST_CID + secrets.randbelow(_CIDS)
    daemon = _way()
    if daemon is None:
        _write(paths, _Record(cid, None))
        return Vsock(cid)
    for path in (paths.vhost_socket, paths.vsock_socket):
        path.unlink(missing_ok=True)
    argv = [
        *(daemon, "--guest-cid", str(cid)),
        *("--socket", os.fspath(paths.vhost_socket)),
        *("--uds-path", os.fspath(paths.vsock_socket)),
    ]
    pid = spawn_detached(argv, log=paths.qemu_log, cwd=paths.root)
    identity = identify(pid)
    _write(paths, _Record(cid, identity))
    _await_daemon(paths.vhost_socket, lambda: exit_status(pid) is not None)
    return Vsock(cid, paths.vhost_socket)


def connect_vsock(paths: MachinePaths, port: int, known: Secrets) -> Connect:
    """How the guest's `port` is reached. Raises MachineError: the machine has no vsock."""
    record = _read(paths)
    if record is None:
        raise MachineError("the machine was started without a vsock")
    if record.daemon is None:
        return kernel_vsock(record.cid, port, known)
    return daemon_vsock(paths.vsock_socket, port, known)


def forget_vsock(paths: MachinePaths) -> None:
    """QEMU is gone: so is the daemon, then."""
    record = _read(paths)
    if record is not None and record.daemon is not None:
        kill(record.daemon)
        wait_gone(record.daemon, _END_PATIENCE)
    for path in (paths.vsock_record, paths.vhost_socket, paths.vsock_socket):
        path.unlink(missing_ok=True)


def _way() -> str | None:
    """The daemon's path; None: the kernel's device can be used."""
    if os.access(DEVICE, os.R_OK | os.W_OK):
        return None
    daemon = shutil.which(DAEMON)
    if daemon is None:
        raise InvalidInput(
            f"this host has no vsock: {DEVICE} cannot be opened and there is no {DAEMON}",
            hint=f"modprobe vhost_vsock, or install {DAEMON}; or --link serial",
        )
    return daemon


def _await_daemon(path: Path, ended: Callable[[], bool]) -> None:
    """Until it listens: it binds the socket itself, and QEMU gives up at once when it cannot
    connect. Whether it does is seen in /proc/net/unix, since it takes one connection only."""
    deadline = time.monotonic() + _DAEMON_PATIENCE
    while not _listening(path):
        if ended():
            raise MachineError(f"{DAEMON} ended at once", hint="its words are in qemu.log")
        if time.monotonic() > deadline:
            raise MachineError(f"{DAEMON} does not listen within {_DAEMON_PATIENCE:g} s")
        time.sleep(_POLL_SECONDS)


def _listening(path: Path) -> bool:
    """unix(7): flag 00010000 (__SO_ACCEPTCON) of a socket in /proc/net/unix."""
    wanted = os.fspath(path)
    for line in Path("/proc/net/unix").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == wanted and fields[3] == "00010000":
            return True
    return False


def _write(paths: MachinePaths, record: _Record) -> None:
    atomic_write(paths.vsock_record, json.dumps(asdict(record)).encode())


def _read(paths: MachinePaths) -> _Record | None:
    try:
        data = json.loads(paths.vsock_record.read_bytes())
        daemon = data["daemon"]
        return _Record(data["cid"], ProcessIdentity(**daemon) if daemon else None)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
