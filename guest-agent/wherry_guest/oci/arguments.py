"""The command line's grammar: runc's commands and flags, as far as they mean something here.

Rules: a flag that is known and not supported is refused by name; usage errors are one line.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final, NoReturn

from wherry_guest.oci.errors import OciError
from wherry_guest.oci.log import LEVELS
from wherry_guest.oci.store import DEFAULT_ROOT
from wherry_guest.oci.update import FLAGS

PROGRAM: Final = "wherry-oci"

_CGROUP_MANAGERS: Final = ("cgroupfs", "disabled", "systemd")

_REFUSED_COMMANDS: Final = ("checkpoint", "restore")
"""Of runc; callers learn from a failing `checkpoint --help` that there is none (podman does)."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OciError(f"{self.prog}: {message}")


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments by name; `command` is the subcommand.

    Raises:
        OciError: they are wrong.
        SystemExit: after --help.
    """
    return _parser().parse_args(argv)


def check(arguments: argparse.Namespace) -> None:
    """Raises OciError when they ask for what is refused: apart, so that it can be logged."""
    if arguments.command in _REFUSED_COMMANDS or arguments.criu is not None:
        what = arguments.command if arguments.criu is None else "--criu"
        raise OciError(f"{what} is not supported: containers cannot be saved to files (CRIU)")
    if arguments.rootless == "true":
        raise OciError("--rootless true is not supported: only root can run containers")
    if arguments.systemd_cgroup or arguments.cgroup_manager == "systemd":
        raise OciError("cgroups by systemd are not supported: use the cgroupfs manager")
    if getattr(arguments, "preserve_fds", 0) < 0:
        raise OciError("--preserve-fds is below 0")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, allow_abbrev=False, description="An OCI runtime.")
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help="state directory")
    parser.add_argument("--log", type=Path, help="file for errors and warnings")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--log-level", choices=LEVELS, default="info")
    parser.add_argument("--debug", dest="log_level", action="store_const", const="debug")
    parser.add_argument("--systemd-cgroup", action="store_true", help="refused")
    parser.add_argument("--cgroup-manager", choices=_CGROUP_MANAGERS, default="cgroupfs")
    parser.add_argument("--rootless", choices=("auto", "false", "true"), default="auto")
    parser.add_argument("--criu", metavar="FILE", help="refused")
    parser.add_argument("--version", "-v", action="store_true")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for add in (_add_life, _add_exec, _add_processes, _add_update, _add_others):
        add(commands)
    return parser


def _add_life(commands: Any) -> None:
    for name in ("create", "run"):
        command = _command(commands, name)
        command.add_argument("--bundle", "-b", type=Path, default=Path())
        command.add_argument("--no-pivot", action="store_true")
        command.add_argument("--no-new-keyring", action="store_true")
        command.add_argument("--no-subreaper", action="store_true", help="always so")
        _add_process(command)
        if name == "run":
            command.add_argument("--detach", "-d", action="store_true")
            command.add_argument("--keep", action="store_true", help="do not delete at the end")
    _command(commands, "start")
    _command(commands, "state")
    command = _command(commands, "delete")
    command.add_argument("--force", "-f", action="store_true")
    command = _command(commands, "kill")
    command.add_argument("--all", "-a", action="store_true")
    command.add_argument("signal", nargs="?", default="TERM")
    _command(commands, "pause")
    _command(commands, "resume")


def _add_process(command: argparse.ArgumentParser) -> None:
    command.add_argument("--console-socket", type=Path)
    command.add_argument("--pid-file", type=Path)
    command.add_argument("--preserve-fds", type=int, default=0)


def _add_exec(commands: Any) -> None:
    command = _command(commands, "exec", id=False)
    _add_process(command)
    command.add_argument("--process", "-p", type=Path, help="a file with a process object")
    command.add_argument("--cwd")
    command.add_argument("--env", "-e", action="append", default=[])
    command.add_argument("--tty", "-t", action="store_true")
    command.add_argument("--user", "-u", help="UID or UID:GID")
    command.add_argument("--additional-gids", "-g", action="append", type=int, default=[])
    command.add_argument("--cap", "-c", action="append", default=[])
    command.add_argument("--no-new-privs", action="store_true")
    command.add_argument("--cgroup", default="")
    command.add_argument("--detach", "-d", action="store_true")
    command.add_argument("--ignore-paused", action="store_true")
    command.add_argument("--process-label", help="refused")
    command.add_argument("--apparmor", help="refused")
    command.add_argument("id", metavar="ID")
    command.add_argument("args", nargs=argparse.REMAINDER, metavar="COMMAND …")


def _add_processes(commands: Any) -> None:
    command = _command(commands, "ps", id=False)
    command.add_argument("--format", "-f", choices=("table", "json"), default="table")
    command.add_argument("id", metavar="ID")
    command.add_argument("args", nargs=argparse.REMAINDER, metavar="PS-OPTION …")
    command = _command(commands, "list", id=False)
    command.add_argument("--format", "-f", choices=("table", "json"), default="table")
    command.add_argument("--quiet", "-q", action="store_true")
    command = _command(commands, "events")
    command.add_argument("--stats", action="store_true", help="once")
    command.add_argument("--interval", default="5s")


def _add_update(commands: Any) -> None:
    command = _command(commands, "update")
    command.add_argument("--resources", "-r", metavar="FILE")
    for flag in FLAGS:
        command.add_argument(f"--{flag}", dest=f"limit_{flag}")


def _add_others(commands: Any) -> None:
    _command(commands, "features", id=False)
    command = _command(commands, "spec", id=False)
    command.add_argument("--bundle", "-b", type=Path, default=Path())
    for name in _REFUSED_COMMANDS:
        command = commands.add_parser(name, add_help=False, prefix_chars="\0")
        command.add_argument("arguments", nargs="*")


def _command(commands: Any, name: str, id: bool = True) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, allow_abbrev=False)
    if id:
        command.add_argument("id", metavar="ID")
    return command
