"""`exec`: one more process in a container.

Rules: what a flag does not say is the container's own first process's; the process is born in the
container's cgroup and pid namespace by the same clone as PID 1's execs.
"""

from __future__ import annotations

import contextlib
import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry_guest.core.fields import SpecError
from wherry_guest.core.launch import Descriptors
from wherry_guest.core.plan import Options, exec_plan
from wherry_guest.core.seccomp import Filters
from wherry_guest.core.spec import parse_process
from wherry_guest.oci import birth, bundle, console, rights
from wherry_guest.oci.create import wait, write_pid_file
from wherry_guest.oci.errors import EXEC_FAILED, OciError
from wherry_guest.oci.store import Entry, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wherry_guest.oci.context import Context


@dataclass(frozen=True, slots=True)
class ExecOptions:
    """The flags of `exec`. `process`: a file with a process object instead of flags."""

    args: tuple[str, ...] = ()
    process: Path | None = None
    cwd: str | None = None
    env: tuple[str, ...] = ()
    tty: bool = False
    user: str | None = None
    additional_gids: tuple[int, ...] = ()
    capabilities: tuple[str, ...] = ()
    no_new_privs: bool = False
    cgroup: str = ""
    detach: bool = False
    console_socket: Path | None = None
    pid_file: Path | None = None
    preserved: int = 0
    ignore_paused: bool = False


def execute(context: Context, id: str, options: ExecOptions) -> int:
    """Run the process; its exit code, or 0 when detached.

    Raises:
        OciError: it was not started; with 255.
    """
    try:
        with context.store.find(id).lock() as entry:
            pid, master = _start(context, entry, options)
    except OciError as error:
        raise OciError(f"exec failed: {error.message}", EXEC_FAILED) from error
    if options.detach:
        return 0
    return wait(pid, master)


def _start(context: Context, entry: Entry, options: ExecOptions) -> tuple[int, int | None]:
    _check_state(entry, options)
    config = entry.config()
    data = _process(config["process"], options)
    namespaces = {item["type"] for item in config["linux"]["namespaces"]}
    personality = ((config["linux"].get("personality") or {}).get("domain")) or None
    profile = config["linux"].get("seccomp")
    try:
        process = parse_process(data, context.log.warning)
        seccomp = Filters().get(profile) if profile else None
    except SpecError as error:
        raise OciError(str(error)) from error
    process = rights.limited(process, "user" in namespaces, context.log.warning)
    tty = process.terminal
    if tty and options.detach and options.console_socket is None:
        raise OciError("a detached terminal needs --console-socket")
    if not tty and options.console_socket is not None:
        raise OciError("--console-socket is given, but there is no terminal")
    with contextlib.ExitStack() as stack:
        taker = None
        if options.console_socket is not None:
            taker = stack.enter_context(contextlib.closing(console.connect(options.console_socket)))
        pidfd = context.kernel.pidfd_open(entry.record.pid)
        stack.callback(os.close, pidfd)
        cgroup_fd = _open_cgroup(entry, options.cgroup, stack)
        wanted = Options(None, tty, preserved=options.preserved)
        own = ("user" in namespaces, personality, seccomp)
        plan = exec_plan(process, wanted, pidfd, context.layout, *own)
        fds = Descriptors(() if tty else (0, 1, 2), cgroup_fd, [pidfd], preserved=options.preserved)
        born = birth.bear(context.kernel, plan, fds, lambda pid: None, beside=pidfd)
        if not options.detach:
            birth.forward_signals(born.pid)
        try:
            if options.pid_file is not None:
                write_pid_file(options.pid_file, born.pid)
            if taker is not None and born.terminal is not None:
                console.send_master(taker, born.terminal)
                os.close(born.terminal)
                born.terminal = None
        except (OciError, OSError):
            birth.end(born.pid)
            raise
        return born.pid, born.terminal


def _check_state(entry: Entry, options: ExecOptions) -> None:
    status = entry.status()
    if status is Status.PAUSED and not options.ignore_paused:
        raise OciError("cannot exec in a paused container (use --ignore-paused to override)")
    if status not in (Status.RUNNING, Status.CREATED, Status.PAUSED):
        raise OciError(f"cannot exec in a {status.value} container")


def _open_cgroup(entry: Entry, below: str, stack: contextlib.ExitStack) -> int | None:
    directory = entry.record.cgroup
    if directory is None:
        if below:
            raise OciError(f"--cgroup {below}: the container has no cgroup")
        return None
    path = Path(directory) / below.strip("/")
    if ".." in path.parts:
        raise OciError(f"--cgroup {below} leads out of the container's cgroup")
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise OciError(f"--cgroup {below}: {error.strerror}") from error
    stack.callback(os.close, fd)
    return fd


def _process(base: dict[str, Any], options: ExecOptions) -> dict[str, Any]:
    """The process object to run."""
    if options.process is not None:
        data = bundle.read_json(options.process)
        if not isinstance(data, dict):
            raise OciError(f"{options.process} must be a JSON object")
        return data
    if not options.args:
        raise OciError("there is no command to run")
    process = copy.deepcopy(base)
    process["args"] = list(options.args)
    process["terminal"] = options.tty
    process.pop("consoleSize", None)
    if options.cwd is not None:
        process["cwd"] = options.cwd
    process["env"] = [*(process.get("env") or []), *options.env]
    if options.no_new_privs:
        process["noNewPrivileges"] = True
    user = dict(process.get("user") or {})
    if options.user is not None:
        user |= {**_ids(options.user), "additionalGids": []}
    if options.additional_gids:
        user["additionalGids"] = list(options.additional_gids)
    process["user"] = user
    if options.capabilities:
        process["capabilities"] = _more(process.get("capabilities") or {}, options.capabilities)
    return process


def _ids(text: str) -> dict[str, int]:
    uid, _, gid = text.partition(":")
    if not uid.isdigit() or (gid and not gid.isdigit()):
        raise OciError(f"--user {text!r} is not UID or UID:GID")
    return {"uid": int(uid), **({"gid": int(gid)} if gid else {})}


def _more(capabilities: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    result = dict(capabilities)
    for kind in ("bounding", "effective", "permitted"):
        result[kind] = [*dict.fromkeys([*(result.get(kind) or []), *names])]
    return result
