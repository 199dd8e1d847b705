"""save, load, import."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from wherry.cli import files, progress
from wherry.cli.app import App, pass_app
from wherry.cli.output import write_all

_FORMATS = ("docker-archive", "oci-archive")


@click.command("save")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write to a file.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(_FORMATS),
    default=_FORMATS[0],
    show_default=True,
    help="A docker-archive is an oci-archive that has Docker's manifest.json, too.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.argument("images", nargs=-1, required=True)
@pass_app
def save_command(
    app: App, output: Path | None, format_: str, quiet: bool, images: tuple[str, ...]
) -> None:
    """Write IMAGES to an archive: standard output, or a file. A repository: all of its tags."""
    with files.target(output) as descriptor:
        query = {"names": images, "format": format_}
        lines = app.client.lines("GET", "/wherry/v1/images/save", query=query)
        plan = next(lines)
        try:
            copied = _copied(plan["Parts"], descriptor)
            with progress.counting(plan["Size"], quiet=quiet or output is None) as advance:
                for count in copied:
                    advance(count)
        finally:
            lines.close()  # until now the engine keeps the blobs


def _copied(parts: list[dict[str, Any]], descriptor: int) -> Iterator[int]:
    """Write an archive's parts; how many bytes that were, step by step."""
    for part in parts:
        if "Data" in part:
            data = base64.b64decode(part["Data"])
            write_all(descriptor, data)
            yield len(data)
        else:
            yield from files.copied(Path(part["Path"]), part["Size"], descriptor)


@click.command("load")
@click.option("-i", "--input", "source", type=click.Path(path_type=Path), help="Read from a file.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("--platform", metavar="OS/ARCH", help="Of an image for several platforms.")
@pass_app
def load_command(app: App, source: Path | None, quiet: bool, platform: str | None) -> None:
    """Load the images of an archive, plain or compressed: standard input, or a file."""
    chunks = files.pieces(source, "an image archive")
    query = {"quiet": quiet, "platform": platform}
    lines = app.client.upload("/images/load", chunks, query=query)
    progress.show_pull(_said(lines), quiet=quiet)


def _said(lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What is loaded goes to standard output, the rest is progress."""
    for line in lines:
        if "stream" in line:
            click.echo(line["stream"], nl=False)
        else:
            yield line


@click.command("import")
@click.option("-c", "--change", "changes", multiple=True, help="A Dockerfile instruction.")
@click.option("-m", "--message", default="", help="A comment for its history.")
@click.option("--platform", metavar="OS/ARCH", help="What is in it runs there.")
@click.argument("source", metavar="FILE|-", type=click.Path(path_type=Path))
@click.argument("name", metavar="[REPOSITORY[:TAG]]", required=False)
@pass_app
def import_command(
    app: App,
    changes: tuple[str, ...],
    message: str,
    platform: str | None,
    source: Path,
    name: str | None,
) -> None:
    """Make an image of the tar of a root file system, plain or compressed; prints its id."""
    repository, tag = progress.split_name(name) if name else (None, None)
    query = {
        "fromSrc": "-",
        "repo": repository,
        "tag": tag,
        "message": message or f"Imported from {source.name}",
        "changes": changes,
        "platform": platform,
    }
    chunks = files.pieces(source, "the tar of a root file system")
    for line in app.client.upload("/images/create", chunks, query=query):
        click.echo(line["status"])
