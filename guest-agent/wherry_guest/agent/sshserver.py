"""The SSH server of the machine: Dropbear, a process for each connection, on no port at all.

The server's files come from the host when they are first wanted (`ssh.install`) and lie on tmpfs;
the host key is made then, in this boot, so no two machines share one and none outlives its boot.
Rules: only the host's key may log in; no passwords. What runs in sessions is not the agent's: it
has a cgroup of its own and can be killed for want of memory.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from wherry_guest.agent import cpio
from wherry_guest.agent.calls import Answer, Params
from wherry_guest.agent.children import run_program
from wherry_guest.agent.kernel import write_file
from wherry_guest.agent.paths import Paths
from wherry_guest.agent.replace import receive
from wherry_guest.agent.sshsession import Session, spawn
from wherry_guest.channel import CallError, Channel
from wherry_guest.loop import Loop

_os: Final[Any] = os

ARCHIVE_LIMIT: Final = 32 << 20
"""Bytes; it has some 3 MB."""

_KEY: Final = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]{68}")
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_KEY_TIMEOUT: Final = 60.0
_LOG_LIMIT: Final = 256 * 1024

_WINDOW: Final = "1048576"
"""Bytes that a client may send ahead, for each channel; the default is 24 KiB."""

_SFTP: Final = Path("/usr/lib/sftp-server")
"""Where Debian's Dropbear looks for it (dropbear, debian/patches)."""

_SHELL: Final = Path("/bin/sh")
_BUSYBOX: Final = "busybox"


class SshServer:
    """The server's files and its sessions."""

    def __init__(self, loop: Loop, paths: Paths) -> None:
        self._loop = loop
        self._directory = paths.run / "ssh"
        self._cgroup = paths.ssh_cgroup
        self._files: Path | None = None

    @property
    def directory(self) -> Path:
        return self._directory

    async def install(self, params: Params, channel: Channel) -> Answer:
        """`ssh.install`."""
        digest = _hex(params, "digest")
        archive = await receive(channel.stream(params.number("stream")), ARCHIVE_LIMIT)
        if hashlib.sha256(archive).hexdigest() != digest:
            raise CallError("invalid", "the archive is not the one that its digest names")
        target = self._directory / digest
        fresh = target.with_suffix(".new")
        self._directory.mkdir(mode=0o700, exist_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            for name, data in cpio.unpack(archive):
                path = fresh / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                path.chmod(0o755)
        except cpio.CpioError as error:
            raise CallError("invalid", f"the server's archive: {error}") from error
        if not target.exists():
            fresh.rename(target)
        return None

    async def prepare(self, params: Params) -> Answer:
        """`ssh.prepare`."""
        files = self._directory / _hex(params, "digest")
        key = params.text("authorized_key")
        if not _KEY.fullmatch(key):
            raise CallError("invalid", "authorized_key must be an ssh-ed25519 key, without comment")
        if not files.is_dir():
            raise CallError("not_found", "the SSH server was not installed since the boot")
        self._files = files
        keys = self._directory / "keys"
        keys.mkdir(mode=0o700, exist_ok=True)
        write_file(str(keys / "authorized_keys"), f"{key}\n", 0o600)
        _furnish(files)
        return {"host_key": await self._host_key(files)}

    def open(self, command: str | None = None) -> Session:
        """A server for one connection; it ends with it.

        Args:
            command: what every session runs, whatever it asks for; None: what it asks for.

        Raises:
            CallError: `conflict`, it was not prepared. OSError.
        """
        if self._files is None:
            raise CallError("conflict", "ssh.prepare has not been called since the agent started")
        argv = [
            *(str(self._files / "bin/dropbear"), "-i", "-E", "-m", "-s"),
            *("-W", _WINDOW),
            *("-r", str(self._directory / "host_key")),
            *("-D", str(self._directory / "keys")),
            *(("-c", command, "-j", "-k") if command is not None else ()),
        ]
        session = spawn(self._loop, argv, _environment(self._files), self._log())
        self._release(session.pid)
        return session

    async def _host_key(self, files: Path) -> str:
        """The public half; made when there is none yet."""
        private, public = self._directory / "host_key", self._directory / "host_key.pub"
        if not public.exists():
            private.unlink(missing_ok=True)
            argv = [str(files / "bin/dropbearkey"), "-t", "ed25519", "-f", str(private)]
            finished = await run_program(self._loop, argv, _KEY_TIMEOUT, _environment(files))
            if finished.code:
                raise CallError("failed", f"make the host key: {finished.complaint}")
        found = _KEY.match(public.read_text(encoding="ascii"))
        if found is None:
            raise CallError("failed", "the host key cannot be read")
        return found[0]

    def _release(self, pid: int) -> None:
        """Out of the agent's cgroup and of its protection, with all that it will start."""
        self._cgroup.mkdir(exist_ok=True)
        (self._cgroup / "cgroup.procs").write_text(str(pid), encoding="ascii")
        Path(f"/proc/{pid}/oom_score_adj").write_text("0", encoding="ascii")

    def _log(self) -> Path:
        log = self._directory / "log"
        if log.exists() and log.stat().st_size > _LOG_LIMIT:
            log.unlink()
        return log


def _furnish(files: Path) -> None:
    """What a login needs in the machine's own root, which has no shell otherwise."""
    Path("/root").mkdir(mode=0o700, exist_ok=True)
    if not _SHELL.exists():
        _SHELL.symlink_to(_BUSYBOX)
    _SFTP.unlink(missing_ok=True)
    _SFTP.symlink_to(files / "bin/sftp-server")


def _environment(files: Path) -> dict[str, str]:
    return {"LD_LIBRARY_PATH": str(files / "lib"), "HOME": "/root"}


def _hex(params: Params, name: str) -> str:
    value = params.text(name)
    if not _HEX.fullmatch(value):
        raise CallError("invalid", f"{name} must be a SHA-256 in hex")
    return value


def frames_command(handover: Sequence[str]) -> str:
    """The session's command that hands the connection to the agent."""
    return "exec " + " ".join(handover)
