"""volume create, ls, inspect, rm, prune."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from wherry.cli.app import App, pass_app
from wherry.cli.containers import each, parse_filters
from wherry.cli.lazy import PlainGroup
from wherry.cli.output import print_objects, print_rows
from wherry.units import human_size

_COLUMNS = {"Driver": "DRIVER", "Name": "VOLUME NAME"}


@click.group("volume", cls=PlainGroup)
def volume_command() -> None:
    """Manage volumes: directories that outlive containers."""


@volume_command.command("create")
@click.option("-d", "--driver", default="local", show_default=True, help="The volume's driver.")
@click.option("-l", "--label", multiple=True, metavar="K=V", help="Set a label.")
@click.option("-o", "--opt", multiple=True, metavar="K=V", help="An option of the driver.")
@click.argument("name", required=False)
@pass_app
def create_command(
    app: App, driver: str, label: tuple[str, ...], opt: tuple[str, ...], name: str | None
) -> None:
    """Make a volume; print its name."""
    body = {
        "Name": name or "",
        "Driver": driver,
        "Labels": _pairs(label),
        "DriverOpts": _pairs(opt),
    }
    click.echo(app.client.request("POST", "/volumes/create", body=body).json()["Name"])


@volume_command.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="K=V", help="Only these.")
@click.option("--format", "format_", metavar="FORMAT", help="table, json, or a Go template.")
@pass_app
def ls_command(app: App, quiet: bool, filters: tuple[str, ...], format_: str | None) -> None:
    """List volumes."""
    query = {"filters": parse_filters(filters)}
    found = app.client.request("GET", "/volumes", query=query).json()["Volumes"]
    rows = [_row(volume) for volume in found]
    print_rows(rows, _COLUMNS, format=format_, quiet="Name" if quiet else None)


@volume_command.command("inspect")
@click.option("-f", "--format", "format_", metavar="FORMAT", help="json, or a Go template.")
@click.argument("names", nargs=-1, required=True)
@pass_app
def inspect_command(app: App, format_: str | None, names: tuple[str, ...]) -> None:
    """Show everything about volumes, as JSON."""
    found = [app.client.request("GET", f"/volumes/{name}").json() for name in names]
    print_objects(found, format_)


@volume_command.command("rm")
@click.option("-f", "--force", is_flag=True, help="No error for a volume that does not exist.")
@click.argument("names", nargs=-1, required=True)
@pass_app
def rm_command(app: App, force: bool, names: tuple[str, ...]) -> None:
    """Remove volumes that no container has."""
    query = {"force": force}
    each(names, lambda name: app.client.request("DELETE", f"/volumes/{name}", query=query))


@volume_command.command("prune")
@click.option("-a", "--all", "everything", is_flag=True, help="Named ones too.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option("--filter", "filters", multiple=True, metavar="K=V", help="Only these (label=…).")
@pass_app
def prune_command(app: App, everything: bool, force: bool, filters: tuple[str, ...]) -> None:
    """Remove anonymous volumes that no container has."""
    which = "all volumes" if everything else "all anonymous volumes"
    if not force and not click.confirm(f"This removes {which} that no container has. Go on?"):
        return
    wanted = parse_filters(filters)
    if everything:
        wanted["all"] = ["true"]
    answer = app.client.request("POST", "/volumes/prune", query={"filters": wanted}).json()
    for name in answer["VolumesDeleted"]:
        click.echo(name)
    click.echo(f"Total reclaimed space: {human_size(answer['SpaceReclaimed'])}")


def _row(volume: Mapping[str, Any]) -> dict[str, Any]:
    labels = volume["Labels"] or {}
    return {
        **volume,
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
    }


def _pairs(entries: tuple[str, ...]) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in entries)
    return {key: value for key, _, value in pairs}
