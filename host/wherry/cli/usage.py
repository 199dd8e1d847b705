"""`wherry system`: what takes disk space, and freeing it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from wherry.cli.app import App, pass_app
from wherry.cli.image_upkeep import confirmed, print_pruned
from wherry.cli.lazy import PlainGroup
from wherry.cli.output import print_rows
from wherry.cli.ps import row
from wherry.cli.system import info_command
from wherry.units import human_duration, human_size

_COLUMNS = {
    "Type": "TYPE",
    "TotalCount": "TOTAL",
    "Active": "ACTIVE",
    "Size": "SIZE",
    "Reclaimable": "RECLAIMABLE",
}
_IMAGE_COLUMNS = {
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "ID": "IMAGE ID",
    "CreatedSince": "CREATED",
    "Size": "SIZE",
    "SharedSize": "SHARED SIZE",
    "UniqueSize": "UNIQUE SIZE",
    "Containers": "CONTAINERS",
}
_ACTIVE = ("running", "paused", "restarting")
_CONTAINER_COLUMNS = {
    "ID": "CONTAINER ID",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "LocalVolumes": "LOCAL VOLUMES",
    "Size": "SIZE",
    "RunningFor": "CREATED",
    "Status": "STATUS",
    "Names": "NAMES",
}
_VOLUME_COLUMNS = {"Name": "VOLUME NAME", "Links": "LINKS", "Size": "SIZE"}
_SHORT_ID = 12


@click.group("system", cls=PlainGroup)
def system_command() -> None:
    """Show what takes disk space, and free it."""


system_command.add_command(info_command)


@system_command.command("df")
@click.option("-v", "--verbose", is_flag=True, help="Every image, container, volume by itself.")
@click.option("--format", "format_", metavar="FORMAT", help="table, json, or a Go template.")
@pass_app
def df_command(app: App, verbose: bool, format_: str | None) -> None:
    """Show what takes disk space: what Docker counts, then the files on this host."""
    usage = app.client.request("GET", "/system/df").json()
    store = app.client.request("GET", "/wherry/v1/store").json()
    if verbose:
        click.echo("Images space usage:\n")
        rows = [row for image in usage["Images"] for row in _image_rows(image)]
        print_rows(rows, _IMAGE_COLUMNS, format=format_)
        click.echo("\nContainers space usage:\n")
        rows = [_container_row(it) for it in usage["Containers"]]
        print_rows(rows, _CONTAINER_COLUMNS, format=format_)
        click.echo("\nLocal volumes space usage:\n")
        print_rows([_volume_row(it) for it in usage["Volumes"]], _VOLUME_COLUMNS, format=format_)
        click.echo("\nFiles on this host:\n")
        print_rows(_file_rows(store), _COLUMNS, format=format_)
        return
    rows = [_images(usage), _containers(usage), _volumes(usage), *_file_rows(store)]
    print_rows(rows, _COLUMNS, format=format_)


@system_command.command("prune")
@click.option("-a", "--all", "everything", is_flag=True, help="Also images with tags.")
@click.option("--volumes", is_flag=True, help="Also anonymous volumes.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@pass_app
def prune_command(app: App, everything: bool, volumes: bool, force: bool) -> None:
    """Remove images that no container uses, and what killed processes left.

    Containers stay: remove them first, and the images that they use may go.
    """
    which = "" if everything else "without a tag "
    more = " and anonymous volumes" if volumes else ""
    if not force and not confirmed(
        f"This will remove all images {which}that no container uses{more}."
    ):
        return
    wanted = {"dangling": ["false" if everything else "true"]}
    pruned = app.client.request("POST", "/images/prune", query={"filters": wanted}).json()
    if volumes:
        gone = app.client.request("POST", "/volumes/prune").json()
        for name in gone["VolumesDeleted"] or ():
            click.echo(f"deleted volume: {name}")
        pruned["SpaceReclaimed"] += gone["SpaceReclaimed"]
    print_pruned(pruned)


def _images(usage: Mapping[str, Any]) -> dict[str, Any]:
    images = usage["Images"]
    active = [image for image in images if image["Containers"]]
    # Docker's estimate: layers that only unused images have.
    used = sum(image["Size"] for image in active)
    unused = sum(it["Size"] - it["SharedSize"] for it in images if not it["Containers"])
    free = min(unused, usage["LayersSize"]) if used else usage["LayersSize"]
    return _row("Images", len(images), len(active), usage["LayersSize"], free)


def _containers(usage: Mapping[str, Any]) -> dict[str, Any]:
    containers = usage["Containers"]
    active = sum(it["State"] in _ACTIVE for it in containers)
    size = sum(it.get("SizeRw", 0) for it in containers)
    stopped = sum(it.get("SizeRw", 0) for it in containers if it["State"] not in _ACTIVE)
    return _row("Containers", len(containers), active, size, stopped)


def _volumes(usage: Mapping[str, Any]) -> dict[str, Any]:
    volumes = usage["Volumes"]
    sizes = [(max(it["UsageData"]["Size"], 0), it["UsageData"]["RefCount"]) for it in volumes]
    return _row(
        "Local Volumes",
        len(volumes),
        sum(count > 0 for _, count in sizes),
        sum(size for size, _ in sizes),
        sum(size for size, count in sizes if not count),
    )


def _file_rows(store: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Blobs and EROFS files apart: of the first those are reclaimable that a registry has."""
    blobs, erofs, unfinished = store["Blobs"], store["Erofs"], store["Unfinished"]
    return [
        _row("Image blobs", blobs["Count"], blobs["Count"], blobs["Size"], store["DroppableSize"]),
        _row("EROFS layers", erofs["Count"], erofs["Count"], erofs["Size"], 0),
        _row("Unfinished", unfinished["Count"], 0, unfinished["Size"], unfinished["Size"]),
    ]


def _row(kind: str, total: int, active: int, size: int, free: int) -> dict[str, Any]:
    share = f" ({round(100 * free / size)}%)" if size else ""
    return {
        "Type": kind,
        "TotalCount": total,
        "Active": active,
        "Size": human_size(size),
        "Reclaimable": human_size(free) + share,
    }


def _image_rows(image: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name in image["RepoTags"] or ["<none>:<none>"]:
        repository, _, tag = name.rpartition(":")
        rows.append(
            {
                "Repository": repository,
                "Tag": tag,
                "ID": image["Id"].removeprefix("sha256:")[:_SHORT_ID],
                "CreatedSince": f"{human_duration(time.time() - image['Created'])} ago",
                "Size": human_size(image["Size"]),
                "SharedSize": human_size(image["SharedSize"]),
                "UniqueSize": human_size(image["Size"] - image["SharedSize"]),
                "Containers": image["Containers"],
            }
        )
    return rows


def _container_row(item: Mapping[str, Any]) -> dict[str, Any]:
    size = human_size(item["SizeRw"]) if "SizeRw" in item else "N/A"
    return row(item, no_trunc=False, now=time.time()) | {"Size": size}


def _volume_row(volume: Mapping[str, Any]) -> dict[str, Any]:
    usage = volume["UsageData"]
    size = human_size(usage["Size"]) if usage["Size"] >= 0 else "N/A"
    return {"Name": volume["Name"], "Links": usage["RefCount"], "Size": size}
