"""image inspect, prune, log, verify."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from wherry.cli import progress
from wherry.cli.app import App, pass_app
from wherry.cli.containers import parse_filters
from wherry.cli.output import print_objects, print_rows
from wherry.units import human_size

_LOG_COLUMNS = {"Time": "TIME", "Digest": "DIGEST", "ID": "IMAGE ID", "State": "STATE"}
_DAMAGE_COLUMNS = {"Kind": "KIND", "Digest": "DIGEST", "Problem": "PROBLEM", "Images": "IMAGES"}
_SHORT_ID = 12


@click.command("inspect")
@click.option("-f", "--format", "format_", metavar="FORMAT", help="json, or a Go template.")
@click.option("--platform", metavar="OS/ARCH", help="The one of a name's that is for it.")
@click.argument("images", nargs=-1, required=True)
@pass_app
def inspect_command(
    app: App, format_: str | None, platform: str | None, images: tuple[str, ...]
) -> None:
    """Show everything about IMAGES, as JSON."""
    query = {"platform": platform}
    paths = [f"/images/{image}/json" for image in images]
    found = [app.client.request("GET", path, query=query).json() for path in paths]
    print_objects(found, format_)


@click.command("prune")
@click.option("-a", "--all", "everything", is_flag=True, help="Also images with tags.")
@click.option("--blobs", is_flag=True, help="Instead: blobs that can be fetched again.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.option("--filter", "filters", multiple=True, metavar="K=V", help="until, label, label!.")
@pass_app
def prune_command(
    app: App, everything: bool, blobs: bool, force: bool, filters: tuple[str, ...]
) -> None:
    """Remove images without a tag that no container uses.

    With --blobs images stay: what goes is the compressed form of layers that are unpacked already
    and that a registry has, too. It is fetched again when something needs it (save, push).
    """
    if blobs and (everything or filters):
        raise click.UsageError("--blobs goes with no other flag")
    what = "blobs that can be fetched again" if blobs else _which(everything)
    if not force and not confirmed(f"This will remove {what}."):
        return
    if blobs:
        reply = app.client.request("POST", "/wherry/v1/images/prune-blobs")
    else:
        wanted = parse_filters(filters)
        if everything:
            wanted["dangling"] = ["false"]
        reply = app.client.request("POST", "/images/prune", query={"filters": wanted})
    print_pruned(reply.json())


def _which(everything: bool) -> str:
    which = "" if everything else "without a tag "
    return f"all images {which}that no container uses"


def confirmed(warning: str) -> bool:
    """Ask whether to go on. No answer, by Ctrl-C or the end of the input, ends the command: a
    script is not to believe that something was removed."""
    return click.confirm(f"WARNING! {warning}\nAre you sure you want to continue?", err=True)


def print_pruned(answer: dict[str, Any]) -> None:
    """What went, one line each, and how much room that made."""
    removals = answer["ImagesDeleted"] or []
    for removal in removals:
        for kind, value in removal.items():
            click.echo(f"{kind.lower()}: {value}")
    if removals:
        click.echo()
    click.echo(f"Total reclaimed space: {human_size(answer['SpaceReclaimed'])}")


@click.command("log")
@click.option("--no-trunc", is_flag=True, help="Whole ids.")
@click.option("--format", "format_", metavar="FORMAT", help="table, json, or a Go template.")
@click.argument("name", metavar="NAME[:TAG]")
@pass_app
def log_command(app: App, no_trunc: bool, format_: str | None, name: str) -> None:
    """Show which digests NAME pointed to, the newest first.

    To go back: wherry tag NAME@DIGEST NAME
    """
    rows = []
    for change in app.client.request("GET", f"/wherry/v1/images/{name}/log").json():
        identifier = change["Id"].removeprefix("sha256:")
        state = "stored" if change["Present"] else "removed" if change["Id"] else "untagged"
        rows.append(
            {
                "Time": change["Time"],
                "Digest": change["Digest"] or "<none>",
                "ID": (identifier if no_trunc else identifier[:_SHORT_ID]) or "<none>",
                "State": state,
            }
        )
    print_rows(rows, _LOG_COLUMNS, format=format_)


@click.command("verify")
@click.option("--repair", is_flag=True, help="Fetch again, or write again, what is damaged.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.argument("images", nargs=-1)
@pass_app
def verify_command(
    app: App, repair: bool, as_json: bool, quiet: bool, images: tuple[str, ...]
) -> int:
    """Check IMAGES, or everything that is stored, against digests and sources.

    The exit code is 1 when something is damaged and was not repaired.
    """
    lines = app.client.lines(
        "POST", "/wherry/v1/images/verify", query={"repair": repair, "names": images}
    )
    results: list[Any] = []
    progress.show_pull(lines, quiet=quiet or not sys.stderr.isatty(), results=results)
    verified = results[0]
    damages = verified["damages"]
    if as_json:
        click.echo(json.dumps(verified, indent=4))
    else:
        _print_damages(damages)
        size = human_size(verified["bytes"])
        click.echo(f"{verified['checked']} files, {size}: {_verdict(damages)}")
    return 1 if any(not damage["repaired"] for damage in damages) else 0


def _print_damages(damages: list[dict[str, Any]]) -> None:
    if not damages:
        return
    rows = []
    for damage in damages:
        outcome = "repaired" if damage["repaired"] else damage["failure"]
        rows.append(
            {
                "Kind": damage["kind"],
                "Digest": damage["digest"].removeprefix("sha256:")[:_SHORT_ID],
                "Problem": damage["problem"] + (f" ({outcome})" if outcome else ""),
                "Images": ", ".join(damage["images"]) or "<none>",
            }
        )
    print_rows(rows, _DAMAGE_COLUMNS, format=None)


def _verdict(damages: list[dict[str, Any]]) -> str:
    if not damages:
        return "all as they should be"
    repaired = sum(damage["repaired"] for damage in damages)
    if repaired == len(damages):
        return f"{repaired} repaired"
    return f"{len(damages)} damaged, {repaired} repaired"
