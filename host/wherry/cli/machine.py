"""machine start, stop, ls, inspect, rm, console, upgrade."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click

from wherry.cli import progress
from wherry.cli.app import App, pass_app
from wherry.cli.output import print_objects, print_rows, write_all
from wherry.client import Client
from wherry.errors import Conflict, NotFound, WherryError

_COLUMNS = {
    "Name": "NAME",
    "State": "STATE",
    "Arch": "ARCH",
    "CPUs": "CPUS",
    "Memory": "MEMORY",
    "Default": "DEFAULT",
}


@click.group("machine")
def machine_command() -> None:
    """Manage the virtual machine that runs the containers."""


@machine_command.command("start")
@click.argument("name", required=False)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@pass_app
def start_command(app: App, name: str | None, quiet: bool) -> None:
    """Start a machine (made when it does not exist)."""
    name = name or app.machine
    progress.start_machine(app.client_of(name), quiet=quiet)
    click.echo(name)


@machine_command.command("stop")
@click.argument("name", required=False)
@pass_app
def stop_command(app: App, name: str | None) -> None:
    """Stop a machine and the containers in it."""
    client = _existing(app, name)
    client.request("POST", "/wherry/v1/machine/stop")
    click.echo(client.machine)


@machine_command.command("ls")
@click.option("--format", "format_", metavar="FORMAT", help="table, json, or a Go template.")
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@pass_app
def ls_command(app: App, format_: str | None, quiet: bool) -> None:
    """List the machines."""
    rows = []
    for name in _names(app):
        facts = _facts(app, name)
        rows.append(
            {
                "Name": name,
                "State": facts.get("state", "stopped"),
                "Arch": facts.get("arch", ""),
                "CPUs": facts.get("cpus", ""),
                "Memory": f"{facts['memory_mib']}MiB" if "memory_mib" in facts else "",
                "Default": "*" if name == app.settings.default_machine else "",
            }
        )
    print_rows(rows, _COLUMNS, format=format_, quiet="Name" if quiet else None)


@machine_command.command("inspect")
@click.option("-f", "--format", "format_", metavar="FORMAT", help="json, or a Go template.")
@click.argument("name", required=False)
@pass_app
def inspect_command(app: App, format_: str | None, name: str | None) -> None:
    """Show everything about a machine, as JSON."""
    client = _existing(app, name)
    print_objects([client.request("GET", "/wherry/v1/machine").json()], format_)


@machine_command.command("console")
@click.option("-n", "--lines", type=int, default=200, show_default=True, help="How many lines.")
@click.argument("name", required=False)
@pass_app
def console_command(app: App, lines: int, name: str | None) -> None:
    """Show the last lines of the machine's serial console."""
    client = _existing(app, name)
    reply = client.request("GET", "/wherry/v1/machine/console", query={"lines": lines})
    write_all(1, reply.body)


@machine_command.command("upgrade")
@click.argument("name", required=False)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@pass_app
def upgrade_command(app: App, name: str | None, quiet: bool) -> None:
    """Take the newest signed packages for the VM (kernel fixes); used from the next start on."""
    client = app.client_of(name or app.machine)
    lines = client.lines("POST", "/wherry/v1/machine/upgrade")
    changes: list[dict[str, Any]] = progress.follow(lines, "changed", quiet=quiet)
    for change in changes:
        click.echo(f"{change['name']}: {change['old'] or 'new'} -> {change['new'] or 'gone'}")
    if not changes:
        click.echo("everything is up to date")


@machine_command.command("rm")
@click.option("-f", "--force", is_flag=True, help="Do not ask; stop it when it runs.")
@click.argument("name", required=False)
@pass_app
def rm_command(app: App, force: bool, name: str | None) -> None:
    """Remove a machine, its containers and its data disk."""
    client = _existing(app, name)
    state = client.request("GET", "/wherry/v1/machine").json()["state"]
    if state == "running" and not force:
        raise Conflict(
            f"machine {client.machine!r} is running",
            hint=f"wherry machine stop {client.machine}, or use --force",
        )
    if not force:
        click.confirm(
            f"Remove machine {client.machine!r}, its containers and its data disk?", abort=True
        )
    client.request("POST", "/wherry/v1/machine/stop")
    client.request("POST", "/wherry/v1/engine/stop")
    _wait_for_engine(client)
    for directory in {client.paths.root, client.paths.sockets}:
        _remove(directory)
    click.echo(client.machine)


def _wait_for_engine(client: Client) -> None:
    """The engine holds its lock until the last moment."""
    from wherry.osutil import lock_file

    with lock_file(client.paths.engine_lock, timeout=15.0):
        pass


def _remove(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise WherryError(f"cannot remove {directory}: {error.strerror}") from error


def _names(app: App) -> list[str]:
    try:
        return sorted(entry.name for entry in app.home.machines.iterdir() if entry.is_dir())
    except FileNotFoundError:
        return []


def _facts(app: App, name: str) -> dict[str, Any]:
    """A machine's inspect where its engine answers, else what is on disk; starts nothing."""
    client = app.client_of(name)
    if client.running():
        facts: dict[str, Any] = client.request("GET", "/wherry/v1/machine").json()
        return facts
    try:
        stored: dict[str, Any] = json.loads(client.paths.config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored


def _existing(app: App, name: str | None) -> Client:
    wanted = name or app.machine
    if wanted not in _names(app):
        raise NotFound(f"no machine {wanted!r}", hint="wherry machine ls lists them")
    return app.client_of(wanted)
