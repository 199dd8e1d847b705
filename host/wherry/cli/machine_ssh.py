"""machine ssh, ssh-config, ssh-proxy: a shell in the machine itself, for people and for editors.

The bytes of SSH go through the engine (`ssh-proxy`), so that no port is open anywhere. The system's
`ssh` is used where there is one, else `wherry.link.ssh.shell`, in a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import click

from wherry.cli import progress
from wherry.cli.app import App, pass_app
from wherry.cli.machines import existing, machine_names
from wherry.connection import Connection
from wherry.paths import default_home

_PATH = "/wherry/v1/machine/ssh"
_PASS_THROUGH = {"ignore_unknown_options": False, "allow_interspersed_args": False}
_READ_BYTES = 65536


@click.command("ssh", context_settings=_PASS_THROUGH)
@click.option("-t", "--tty", is_flag=True, help="A terminal also for a command.")
@click.argument("arguments", metavar="[NAME] [COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@pass_app
def ssh_command(app: App, tty: bool, arguments: tuple[str, ...]) -> None:
    """Log in to a machine, or run a command in it.

    The first argument is the machine's name if there is a machine of that name.
    """
    name, command = app.machine, arguments
    if arguments and arguments[0] in machine_names(app):
        name, command = arguments[0], arguments[1:]
    client = existing(app, name)
    progress.start_machine(client, quiet=not sys.stderr.isatty())
    facts = client.request("GET", _PATH).json()
    client.close()
    ssh = shutil.which("ssh")
    if ssh is None:
        argv = _own_client(name, facts, tty)
    else:
        options = [part for line in _options(app, name, facts) for part in ("-o", line)]
        argv = [ssh, "-F", "none", *options, *(("-t",) if tty else ()), facts["alias"]]
    _become([*argv, *command])


@click.command("ssh-config")
@click.argument("name", required=False)
@pass_app
def ssh_config_command(app: App, name: str | None) -> None:
    """Print a machine's section for ~/.ssh/config.

    With it ssh, scp, sftp and editors know the machine as `wherry-NAME`, and start it when needed.
    """
    client = existing(app, name)
    facts = client.request("GET", _PATH).json()
    click.echo(f"Host {facts['alias']}")
    for line in _options(app, client.machine, facts):
        click.echo(f"  {line}")


@click.command("ssh-proxy")
@click.argument("name", required=False)
@pass_app
def ssh_proxy_command(app: App, name: str | None) -> None:
    """Connect standard input and output to a machine's SSH server: a ProxyCommand."""
    connection, early = existing(app, name).hijack(_PATH)
    threading.Thread(target=_send, args=(connection,), daemon=True).start()
    with contextlib.suppress(BrokenPipeError, ConnectionError):
        data = early or connection.recv(_READ_BYTES)
        while data:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            data = connection.recv(_READ_BYTES)
    connection.close()


def _send(connection: Connection) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(0, _READ_BYTES):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)


def _options(app: App, name: str, facts: Mapping[str, Any]) -> list[str]:
    """ssh_config(5). Nobody is trusted on first use: the proxy has written the list of keys."""
    return [
        f"HostName {facts['alias']}",
        f"User {facts['user']}",
        f"IdentityFile {_quoted(facts['identity'])}",
        "IdentitiesOnly yes",
        f"UserKnownHostsFile {_quoted(facts['known_hosts'])}",
        "GlobalKnownHostsFile none",
        "StrictHostKeyChecking yes",
        "HostKeyAlgorithms ssh-ed25519",
        f"ProxyCommand {_escaped(_line(_proxy_anywhere(app, name)))}",
    ]


def _proxy(name: str) -> list[str]:
    return [sys.executable, "-m", "wherry", "machine", "ssh-proxy", name]


def _proxy_anywhere(app: App, name: str) -> list[str]:
    """For a configuration file: it does not depend on the environment."""
    argv = _proxy(name)
    if app.home.root == default_home({}) or sys.platform == "win32":
        return argv
    return ["env", f"WHERRY_HOME={app.home.root}", *argv]


def _line(argv: Sequence[str]) -> str:
    return subprocess.list2cmdline(argv) if sys.platform == "win32" else shlex.join(argv)


def _quoted(path: str) -> str:
    return f'"{_escaped(path)}"'


def _escaped(text: str) -> str:
    """`%` begins a token (ssh_config(5), TOKENS)."""
    return text.replace("%", "%%")


def _own_client(name: str, facts: Mapping[str, Any], tty: bool) -> list[str]:
    return [
        *(sys.executable, "-m", "wherry.link.ssh.shell"),
        *("--proxy", _line(_proxy(name))),
        *("--user", facts["user"], "--alias", facts["alias"]),
        *("--identity", facts["identity"], "--known-hosts", facts["known_hosts"]),
        *(("--tty",) if tty else ()),
        "--",
    ]


def _become(argv: Sequence[str]) -> None:
    """Run it in our place; its exit code is ours."""
    sys.stdout.flush()
    if sys.platform == "win32":
        raise SystemExit(subprocess.call(argv))
    os.execv(argv[0], list(argv))
