"""The commands, from arguments to exit code.

Rules: one function per command; what fails is one line on standard error and in the log.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import wherry_guest
from wherry_guest.core.hooks import STATE_VERSION
from wherry_guest.core.syscalls import Kernel
from wherry_guest.oci import arguments, create, events, execs, features, life, update
from wherry_guest.oci.context import Context
from wherry_guest.oci.errors import EXEC_FAILED, FAILED, OciError
from wherry_guest.oci.log import Log
from wherry_guest.oci.store import Store

INTERRUPTED: Final = 130
"""As a shell has it: 128 and SIGINT."""

_os: Final[Any] = os


def main(argv: list[str], kernel: Kernel | None = None) -> int:
    """Run one command; its exit code. `kernel`: another than the real one, for tests."""
    log = Log()
    command = ""
    try:
        given = arguments.parse(argv)
        log = Log(given.log, given.log_format, given.log_level)
        log.check()
        arguments.check(given)
        if given.version:
            _print(f"{arguments.PROGRAM} {wherry_guest.__version__}\nspec: {STATE_VERSION}")
            return 0
        if given.command is None:
            raise OciError(f"{arguments.PROGRAM}: a command is missing (see --help)")
        command = given.command
        return _COMMANDS[command](_context(given, log, kernel or Kernel()), given) or 0
    except OciError as error:
        log.error(error.message)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        log.error(f"{command}: {error.strerror or error}{where}")
        return EXEC_FAILED if command == "exec" else FAILED


def _context(given: Namespace, log: Log, kernel: Kernel) -> Context:
    if sys.platform != "linux":
        raise OciError("containers run on Linux only")
    if given.command not in ("features", "spec") and _os.geteuid() != 0:
        raise OciError("only root can run containers")
    return Context(Store(given.root), log, kernel, given.cgroup_manager != "disabled")


def _create_options(given: Namespace) -> create.CreateOptions:
    _check_preserved(given.preserve_fds)
    return create.CreateOptions(
        bundle=given.bundle,
        console_socket=given.console_socket,
        pid_file=given.pid_file,
        preserved=given.preserve_fds,
        pivot=not given.no_pivot,
        keyring=not given.no_new_keyring,
    )


def _create(context: Context, given: Namespace) -> None:
    create.create(context, given.id, _create_options(given))


def _run(context: Context, given: Namespace) -> int:
    return create.run(context, given.id, _create_options(given), given.detach, given.keep)


def _exec(context: Context, given: Namespace) -> int:
    for flag in ("process_label", "apparmor"):
        if getattr(given, flag):
            raise OciError(f"--{flag.replace('_', '-')} is not supported", EXEC_FAILED)
    _check_preserved(given.preserve_fds)
    args = given.args[1:] if given.args[:1] == ["--"] else given.args
    options = execs.ExecOptions(
        args=tuple(args),
        process=given.process,
        cwd=given.cwd,
        env=tuple(given.env),
        tty=given.tty,
        user=given.user,
        additional_gids=tuple(given.additional_gids),
        capabilities=tuple(given.cap),
        no_new_privs=given.no_new_privs,
        cgroup=given.cgroup,
        detach=given.detach,
        console_socket=given.console_socket,
        pid_file=given.pid_file,
        preserved=given.preserve_fds,
        ignore_paused=given.ignore_paused,
    )
    return execs.execute(context, given.id, options)


def _check_preserved(count: int) -> None:
    """Raises OciError when a descriptor that is to be handed on is not open."""
    for fd in range(3, 3 + count):
        try:
            os.fstat(fd)
        except OSError as error:
            raise OciError(f"--preserve-fds {count}: descriptor {fd} is not open") from error


def _state(context: Context, given: Namespace) -> None:
    _print(json.dumps(life.state(context, given.id), indent=2))


def _list(context: Context, given: Namespace) -> None:
    rows = [life.describe(entry) for entry in context.store.all()]
    if given.quiet:
        _print("\n".join(row["id"] for row in rows))
    elif given.format == "json":
        _print(json.dumps(rows))
    else:
        _print(_table(rows))


def _table(rows: list[dict[str, Any]]) -> str:
    columns = ("id", "pid", "status", "bundle", "created")
    cells = [[name.upper() for name in columns]]
    cells += [[str(row[name]) for name in columns] for row in rows]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def _kill(context: Context, given: Namespace) -> None:
    life.kill(context, given.id, life.signal_number(given.signal), given.all)


def _ps(context: Context, given: Namespace) -> None:
    sys.stdout.write(life.ps(context, given.id, given.format, given.args))


def _update(context: Context, given: Namespace) -> None:
    flags = {flag: getattr(given, f"limit_{flag}") for flag in update.FLAGS}
    values = {flag: value for flag, value in flags.items() if value is not None}
    if values and given.resources is not None:
        raise OciError("update takes --resources or single limits, not both")
    data = update.from_flags(values)
    if given.resources is not None:
        data = update.from_file(given.resources)
    update.update(context, given.id, data)


def _events(context: Context, given: Namespace) -> None:
    text = given.interval.removesuffix("s")
    try:
        interval = float(text)
    except ValueError as error:
        raise OciError(f"--interval {given.interval!r} is not a number of seconds") from error
    for line in events.events(context, given.id, given.stats, interval):
        _print(line)


def _print(text: str) -> None:
    print(text, flush=True)


_Command = Callable[[Context, Namespace], int | None]

_COMMANDS: Final[dict[str, _Command]] = {
    "create": _create,
    "start": lambda context, given: create.start(context, given.id),
    "run": _run,
    "state": _state,
    "list": _list,
    "kill": _kill,
    "delete": lambda context, given: life.delete(context, given.id, given.force),
    "exec": _exec,
    "ps": _ps,
    "pause": lambda context, given: life.pause(context, given.id),
    "resume": lambda context, given: life.resume(context, given.id),
    "update": _update,
    "events": _events,
    "features": lambda context, given: _print(json.dumps(features.features(), indent=2)),
    "spec": lambda context, given: features.write_spec(Path(given.bundle)),
}
