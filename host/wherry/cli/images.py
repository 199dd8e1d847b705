"""pull, images, rmi, tag, history."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from wherry.cli import progress
from wherry.cli.app import App, pass_app
from wherry.cli.containers import parse_filters
from wherry.cli.output import print_rows
from wherry.errors import WherryError
from wherry.units import human_duration, human_size

_COLUMNS = {
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "ID": "IMAGE ID",
    "CreatedSince": "CREATED",
    "Size": "SIZE",
}
_HISTORY_COLUMNS = {
    "ID": "IMAGE",
    "CreatedSince": "CREATED",
    "CreatedBy": "CREATED BY",
    "Size": "SIZE",
    "Comment": "COMMENT",
}
_SHORT_ID = 12
_CREATED_BY_WIDTH = 45


@click.command("pull")
@click.option("-q", "--quiet", is_flag=True, help="Only the image's name.")
@click.option("--platform", metavar="OS/ARCH", help="The platform to fetch.")
@click.option("--all-platforms", is_flag=True, help="Also keep those of all other platforms.")
@click.argument("image")
@pass_app
def pull_command(
    app: App, quiet: bool, platform: str | None, all_platforms: bool, image: str
) -> None:
    """Fetch IMAGE from a registry."""
    progress.pull(app, image, platform=platform, quiet=quiet, all_platforms=all_platforms)
    click.echo(image)


@click.command("images")
@click.option("-a", "--all", "show_all", is_flag=True, help="Untagged images too.")
@click.option("-q", "--quiet", is_flag=True, help="Only ids.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="K=V", help="Only these.")
@click.option("--digests", is_flag=True, help="Show digests.")
@click.option("--no-trunc", is_flag=True, help="Whole ids.")
@click.option("--format", "format_", metavar="FORMAT", help="table, json, or a Go template.")
@click.argument("reference", required=False)
@pass_app
def images_command(
    app: App,
    show_all: bool,
    quiet: bool,
    filters: tuple[str, ...],
    digests: bool,
    no_trunc: bool,
    format_: str | None,
    reference: str | None,
) -> None:
    """List images."""
    wanted = parse_filters(filters)
    if reference:
        wanted.setdefault("reference", []).append(reference)
    with_shared = any(field in (format_ or "") for field in ("SharedSize", "UniqueSize"))
    query = {"all": show_all, "filters": wanted, "shared-size": with_shared or None}
    rows: list[dict[str, Any]] = []
    for image in app.client.request("GET", "/images/json", query=query).json():
        rows += _rows(image, no_trunc)
    columns = dict(_COLUMNS)
    if digests:
        columns = {"Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", **columns}
    print_rows(rows, columns, format=format_, quiet="ID" if quiet else None)


def _rows(image: Mapping[str, Any], no_trunc: bool) -> list[dict[str, Any]]:
    digests = dict(entry.split("@", 1) for entry in image["RepoDigests"] or ())
    names = image["RepoTags"] or [f"{name}:<none>" for name in digests] or ["<none>:<none>"]
    age = human_duration(time.time() - image["Created"])
    shared = image["SharedSize"]
    rows = []
    for name in names:
        repository, _, tag = name.rpartition(":")
        rows.append(
            {
                "Repository": repository,
                "Tag": tag,
                "Digest": digests.get(repository, "<none>"),
                "ID": image["Id"] if no_trunc else _short(image["Id"]),
                "CreatedSince": f"{age} ago",
                "Size": human_size(image["Size"]),
                "SharedSize": human_size(shared) if shared >= 0 else "N/A",
                "UniqueSize": human_size(image["Size"] - shared) if shared >= 0 else "N/A",
                "Containers": image["Containers"],
            }
        )
    return rows


def _short(identifier: str) -> str:
    return identifier.removeprefix("sha256:")[:_SHORT_ID]


@click.command("rmi")
@click.option("-f", "--force", is_flag=True, help="Also when it has several names.")
@click.argument("images", nargs=-1, required=True)
@pass_app
def rmi_command(app: App, force: bool, images: tuple[str, ...]) -> None:
    """Remove images."""
    failed: WherryError | None = None
    for name in images:
        try:
            reply = app.client.request("DELETE", f"/images/{name}", query={"force": force})
        except WherryError as error:
            if failed is not None:
                click.echo(f"wherry: {failed.message}", err=True)
            failed = error
            continue
        for removal in reply.json():
            for what, target in removal.items():
                click.echo(f"{what}: {target}")
    if failed is not None:
        raise failed


@click.command("tag")
@click.argument("source")
@click.argument("target")
@pass_app
def tag_command(app: App, source: str, target: str) -> None:
    """Give the image SOURCE the name TARGET."""
    name, tag = progress.split_name(target)
    app.client.request("POST", f"/images/{source}/tag", query={"repo": name, "tag": tag})


@click.command("history")
@click.option("-q", "--quiet", is_flag=True, help="Only ids.")
@click.option("--no-trunc", is_flag=True, help="Whole commands.")
@click.option("--format", "format_", metavar="FORMAT", help="table, json, or a Go template.")
@click.argument("image")
@pass_app
def history_command(app: App, quiet: bool, no_trunc: bool, format_: str | None, image: str) -> None:
    """Show the layers of IMAGE, the newest first."""
    rows = []
    for entry in app.client.request("GET", f"/images/{image}/history").json():
        created_by = entry["CreatedBy"]
        if not no_trunc and len(created_by) > _CREATED_BY_WIDTH:
            created_by = created_by[: _CREATED_BY_WIDTH - 1] + "…"
        rows.append(
            {
                "ID": entry["Id"] if no_trunc else _short(entry["Id"]),
                "CreatedSince": f"{human_duration(time.time() - entry['Created'])} ago",
                "CreatedBy": created_by,
                "Size": human_size(entry["Size"]),
                "Comment": entry["Comment"],
            }
        )
    print_rows(rows, _HISTORY_COLUMNS, format=format_, quiet="ID" if quiet else None)
