"""ps: the list of containers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from wherry.cli.app import App, pass_app
from wherry.cli.containers import parse_filters
from wherry.cli.output import print_rows
from wherry.units import human_duration, human_size

_COLUMNS = {
    "ID": "CONTAINER ID",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "RunningFor": "CREATED",
    "Status": "STATUS",
    "Ports": "PORTS",
    "Names": "NAMES",
}
_SIZED = {**_COLUMNS, "Size": "SIZE"}
_SHORT_ID = 12
_COMMAND_WIDTH = 20
_MOUNT_WIDTH = 15


@click.command("ps")
@click.option("-a", "--all", "show_all", is_flag=True, help="Stopped containers too.")
@click.option("-q", "--quiet", is_flag=True, help="Only ids.")
@click.option("-n", "--last", type=int, default=-1, help="The N newest, in any state.")
@click.option("-l", "--latest", is_flag=True, help="The newest, in any state.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="K=V", help="Only these.")
@click.option("-s", "--size", is_flag=True, help="What they have written, too.")
@click.option("--no-trunc", is_flag=True, help="Whole ids and commands.")
@click.option("--format", "format_", metavar="FORMAT", help="table, json, or a Go template.")
@pass_app
def ps_command(
    app: App,
    show_all: bool,
    quiet: bool,
    last: int,
    latest: bool,
    filters: tuple[str, ...],
    size: bool,
    no_trunc: bool,
    format_: str | None,
) -> None:
    """List containers.

    Filters: ancestor, before, exited, health, id, label, name, since, status, volume.
    """
    limit = 1 if latest else last
    query: dict[str, object] = {"all": show_all or limit > 0, "filters": parse_filters(filters)}
    if limit > 0:
        query["limit"] = limit
    if size or (format_ and ".Size" in format_):
        query["size"] = True
    found = app.client.request("GET", "/containers/json", query=query).json()
    rows = [row(item, no_trunc, time.time()) for item in found]
    columns = _SIZED if size else _COLUMNS
    print_rows(rows, columns, format=format_, quiet="ID" if quiet else None)


def row(item: Mapping[str, Any], no_trunc: bool, now: float) -> dict[str, Any]:
    """The cells of one container, from the API's summary; names are Docker's."""
    command = item["Command"]
    if not no_trunc:
        command = _cut(command, _COMMAND_WIDTH)
    image_id = item["ImageID"].removeprefix("sha256:")
    mounts = [mount.get("Name") or mount.get("Source") or "" for mount in item["Mounts"]]
    volumes = sum(mount.get("Type") == "volume" for mount in item["Mounts"])
    return {
        "ID": item["Id"] if no_trunc else item["Id"][:_SHORT_ID],
        "Image": item["Image"],
        "ImageID": image_id if no_trunc else image_id[:_SHORT_ID],
        "Command": f'"{command}"',
        "CreatedAt": time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", time.gmtime(item["Created"])),
        "RunningFor": f"{human_duration(now - item['Created'])} ago",
        "State": item["State"],
        "Status": item["Status"],
        "Ports": ", ".join(_port(port) for port in item["Ports"]),
        "Names": ",".join(name.removeprefix("/") for name in item["Names"]),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(item["Labels"].items())),
        "Mounts": ",".join(mounts if no_trunc else [_cut(name, _MOUNT_WIDTH) for name in mounts]),
        "LocalVolumes": str(volumes),
        "Networks": ",".join(item["NetworkSettings"]["Networks"]),
        "Size": _size(item),
    }


def _size(item: Mapping[str, Any]) -> str:
    if "SizeRootFs" not in item:
        return ""
    written = human_size(item["SizeRw"]) if "SizeRw" in item else "N/A"
    return f"{written} (virtual {human_size(item['SizeRootFs'])})"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _port(port: Mapping[str, Any]) -> str:
    inside = f"{port['PrivatePort']}/{port['Type']}"
    if not port.get("PublicPort"):
        return inside
    address = port.get("IP", "")
    address = f"[{address}]" if ":" in address else address
    return f"{address}:{port['PublicPort']}->{inside}"
