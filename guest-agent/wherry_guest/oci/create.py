"""`create`, `start` and `run`.

Rules: `create` leaves a process that waits on a socket, or nothing at all; `start` connects to it
and hears whether the exec went well; what a failed command has made it removes, in reverse order.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry_guest.core.fields import SpecError
from wherry_guest.core.hooks import HookState, run_hooks
from wherry_guest.core.launch import Descriptors
from wherry_guest.core.plan import DirectoryRoot, Options, Plan, container_plan
from wherry_guest.core.steps import SetupError
from wherry_guest.oci import birth, bundle, cgroup, console, rights
from wherry_guest.oci.errors import OciError
from wherry_guest.oci.life import destroy
from wherry_guest.oci.store import CONFIG, SOCKET, Entry, Record, Status, start_time

if TYPE_CHECKING:
    import socket

    from wherry_guest.core.spec import Spec
    from wherry_guest.oci.bundle import Bundle
    from wherry_guest.oci.context import Context


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """The flags of `create` and `run`."""

    bundle: Path
    console_socket: Path | None = None
    pid_file: Path | None = None
    preserved: int = 0
    pivot: bool = True
    keyring: bool = True


def create(context: Context, id: str, options: CreateOptions) -> None:
    """Make the container; its process waits for `start`.

    Raises:
        OciError: nothing is left.
    """
    loaded = bundle.load(options.bundle, context.log.warning)
    terminal = loaded.spec.process.terminal
    if terminal and options.console_socket is None:
        raise OciError("process.terminal is true: create needs --console-socket")
    if not terminal and options.console_socket is not None:
        raise OciError("--console-socket is given, but process.terminal is not true")
    _create(context, id, loaded, options)


def start(context: Context, id: str) -> None:
    """Let the container run its program; OciError."""
    with context.store.find(id).lock() as entry:
        status = entry.status()
        if status is Status.STOPPED:
            raise OciError(f"cannot start a container that has stopped: {id}")
        if status is not Status.CREATED:
            raise OciError(f"cannot start an already running container: {id}")
        birth.start(entry.directory, SOCKET)
    _poststart(context, entry)


def run(context: Context, id: str, options: CreateOptions, detach: bool, keep: bool) -> int:
    """`create`, `start`, and unless detached: wait, delete. The process's exit code; OciError."""
    loaded = bundle.load(options.bundle, context.log.warning)
    if loaded.spec.process.terminal and detach and options.console_socket is None:
        raise OciError("process.terminal is true: run --detach needs --console-socket")
    entry, master = _create(context, id, loaded, options)
    if not detach:  # before its program runs: whoever hears of that may signal us at once
        birth.forward_signals(entry.record.pid)
    try:
        start(context, id)
    except OciError:
        birth.end(entry.record.pid)
        destroy(context, entry)
        raise
    if detach:
        return 0
    code = wait(entry.record.pid, master)
    if not keep:
        destroy(context, entry)
    return code


def wait(pid: int, master: int | None) -> int:
    """Serve a process of ours in the foreground until it ends; its exit code.

    Signals are the caller's (`birth.forward_signals`), since they may come as soon as it runs.
    """
    if master is not None:
        console.Terminal(master, pid).serve()
    _, status = os.waitpid(pid, 0)
    return birth.exit_code(status)


def _create(
    context: Context, id: str, loaded: Bundle, options: CreateOptions
) -> tuple[Entry, int | None]:
    """The entry, and the terminal's master where no console socket has taken it."""
    record = Record(
        id=id,
        bundle=os.fspath(loaded.directory),
        rootfs=loaded.rootfs,
        created=datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        annotations=dict(loaded.spec.annotations),
    )
    entry = context.store.create(record, loaded.text)
    undo: list[Callable[[], None]] = [lambda: context.store.remove(entry)]
    previous = signal.signal(signal.SIGTERM, _interrupted)
    try:
        return _make(context, entry, loaded, options, undo)
    except BaseException:
        for action in reversed(undo):
            action()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def _make(
    context: Context,
    entry: Entry,
    loaded: Bundle,
    options: CreateOptions,
    undo: list[Callable[[], None]],
) -> tuple[Entry, int | None]:
    with entry.lock(), contextlib.ExitStack() as stack:
        taker: socket.socket | None = None
        if options.console_socket is not None:
            taker = stack.enter_context(contextlib.closing(console.connect(options.console_socket)))
        entry, cgroup_fd = _make_cgroup(context, entry, loaded.spec, undo)
        stack.callback(_close, cgroup_fd)
        plan = _plan(context, entry, loaded, options)
        listener = stack.enter_context(birth.listening(entry.directory, SOCKET))
        spec = loaded.spec
        stdio = () if spec.process.terminal else (0, 1, 2)
        fds = Descriptors(stdio, cgroup_fd, preserved=options.preserved, listener=listener.fileno())
        about = _about(entry)

        def hooks(pid: int) -> None:
            document = about.document("creating", pid)
            with birth.setup_errors():
                for stage in ("prestart", "createRuntime"):
                    run_hooks(context.kernel, stage, spec.hooks.at(stage), document)

        born = birth.bear(context.kernel, plan, fds, hooks)
        undo.append(lambda: birth.end(born.pid))
        if not born.created:
            raise OciError("the container's process ended before it was created")
        entry = entry.save(pid=born.pid, start_time=start_time(born.pid))
        if options.pid_file is not None:
            write_pid_file(options.pid_file, born.pid)
        if taker is not None and born.terminal is not None:
            console.send_master(taker, born.terminal)
            os.close(born.terminal)
            born.terminal = None
        return entry, born.terminal


def _make_cgroup(
    context: Context, entry: Entry, spec: Spec, undo: list[Callable[[], None]]
) -> tuple[Entry, int | None]:
    root = cgroup.tree() if context.cgroups else None
    if root is None:
        return entry, None
    made = cgroup.make(root, cgroup.place(spec.cgroups_path, entry.id))
    undo.append(lambda: cgroup.remove(made.directory, made.made))
    entry = entry.save(cgroup=made.directory, cgroups_made=made.made)
    return entry, os.open(made.directory, os.O_RDONLY)


def _plan(context: Context, entry: Entry, loaded: Bundle, options: CreateOptions) -> Plan:
    process = rights.granted(loaded.spec, context.log.warning)
    spec = replace(loaded.spec, process=process)
    wanted = Options(
        cgroup=entry.record.cgroup,
        tty=process.terminal,
        about=_about(entry),
        await_start=True,
        pivot=options.pivot,
        keyring=options.keyring,
        preserved=options.preserved,
    )
    try:
        return container_plan(spec, DirectoryRoot(loaded.rootfs), wanted, context.layout)
    except SpecError as error:
        raise OciError(f"{loaded.directory / CONFIG}: {error}") from error


def _poststart(context: Context, entry: Entry) -> None:
    """Failures are warnings, as the runtime spec says (runtime.md, "Lifecycle")."""
    hooks = bundle.hooks_of(entry.config())
    document = _about(entry).document("running", entry.record.pid)
    for hook in hooks.at("poststart"):
        try:
            run_hooks(context.kernel, "poststart", [hook], document)
        except SetupError as error:
            context.log.warning(error.message)


def _about(entry: Entry) -> HookState:
    record = entry.record
    return HookState(record.id, record.bundle, tuple(record.annotations.items()))


def write_pid_file(path: Path, pid: int) -> None:
    """The pid, whole or not at all; OciError."""
    temporary = path.with_name(f".{path.name}")
    try:
        temporary.write_text(str(pid), encoding="ascii")
        temporary.rename(path)
    except OSError as error:
        raise OciError(f"--pid-file {path}: {error.strerror}") from error


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)


def _interrupted(number: int, frame: Any) -> None:
    raise OciError("terminated")
