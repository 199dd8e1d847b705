"""machine snapshot save, ls, restore, rm."""

from __future__ import annotations

import time
from typing import Any

import click

from wherry.cli import progress
from wherry.cli.app import App, pass_app
from wherry.cli.containers import each
from wherry.cli.lazy import PlainGroup
from wherry.cli.machines import existing
from wherry.cli.output import print_rows
from wherry.client import Client
from wherry.errors import EngineUnreachable, WherryError
from wherry.units import human_duration, human_size

_COLUMNS = {
    "Name": "NAME",
    "Created": "CREATED",
    "Running": "RUNNING",
    "Containers": "CONTAINERS",
    "Memory": "MEMORY",
    "Size": "SIZE",
}
_ROOT = "/wherry/v1/machine/snapshots"
_REOPEN_SECONDS = 20.0

_machine = click.option("--machine", "machine", metavar="M", help="Of this machine.")


@click.group("snapshot", cls=PlainGroup)
def snapshot_command() -> None:
    """Save a machine as it stands, with what runs in it, and go back to that."""


@snapshot_command.command("save")
@_machine
@click.argument("name")
@pass_app
def save_command(app: App, machine: str | None, name: str) -> None:
    """Save memory, containers and disk as NAME; what runs goes on."""
    existing(app, machine).request("POST", _ROOT, body={"name": name})
    click.echo(name)


@snapshot_command.command("ls")
@_machine
@click.option("--format", "format_", metavar="FORMAT", help="table, json, or a Go template.")
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@pass_app
def ls_command(app: App, machine: str | None, format_: str | None, quiet: bool) -> None:
    """List a machine's snapshots."""
    found = existing(app, machine).request("GET", _ROOT).json()["snapshots"]
    rows = [_row(snapshot) for snapshot in found]
    print_rows(rows, _COLUMNS, format=format_, quiet="Name" if quiet else None)


@snapshot_command.command("restore")
@_machine
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.argument("name")
@pass_app
def restore_command(app: App, machine: str | None, force: bool, quiet: bool, name: str) -> None:
    """Go back to NAME: what the machine's containers and volumes have become since is lost."""
    client = existing(app, machine)
    found = client.request("GET", _ROOT).json()["snapshots"]
    snapshot = next((it for it in found if it["name"] == name), None)
    if snapshot is not None and not force:
        click.confirm(
            f"Lose what machine {client.machine!r} has become since snapshot {name!r}?", abort=True
        )
    before = client.request("GET", "/wherry/v1/engine").json()["started_ns"]
    client.request("POST", f"{_ROOT}/{name}/restore")
    _await_next_engine(client, before)
    if snapshot is not None and snapshot["memory"]:
        progress.start_machine(client, quiet=quiet)
    click.echo(name)


@snapshot_command.command("rm")
@_machine
@click.argument("names", nargs=-1, required=True)
@pass_app
def rm_command(app: App, machine: str | None, names: tuple[str, ...]) -> None:
    """Remove snapshots; the machine stays as it is."""
    client = existing(app, machine)
    each(names, lambda name: client.request("DELETE", f"{_ROOT}/{name}"))


def _await_next_engine(client: Client, before: int) -> None:
    """All connections end; until the engine that begins with the snapshot's rows answers."""
    deadline = time.monotonic() + _REOPEN_SECONDS
    while True:
        client.close()
        try:
            if client.request("GET", "/wherry/v1/engine").json()["started_ns"] != before:
                return
        except (EngineUnreachable, OSError) as error:
            trouble: Exception | None = error
        else:
            trouble = None
        if time.monotonic() > deadline:
            raise WherryError("the machine's engine did not come back") from trouble
        time.sleep(0.02)


def _row(snapshot: dict[str, Any]) -> dict[str, Any]:
    return {
        "Name": snapshot["name"],
        "Created": f"{human_duration(time.time() - snapshot['saved_ns'] / 1e9)} ago",
        "Running": snapshot["running"],
        "Containers": snapshot["containers"],
        "Memory": f"{snapshot['memory_mib']}MiB" if snapshot["memory"] else "",
        "Size": human_size(snapshot["bytes"]),
        "QEMU": snapshot["qemu"] or "",
        "CPU": snapshot["cpu"] or "",
        "MachineType": snapshot["machine_type"] or "",
    }
