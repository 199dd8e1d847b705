"""diff, commit, export: what is in a container, and images made of it."""

from __future__ import annotations

from pathlib import Path

import click

from wherry.cli import files, progress
from wherry.cli.app import App, pass_app
from wherry.cli.output import write_all

_KINDS = ("C", "A", "D")
"""Engine API, ChangeType."""


@click.command("diff")
@click.argument("container")
@pass_app
def diff_command(app: App, container: str) -> None:
    """Show what CONTAINER changed: A added, C changed, D deleted."""
    progress.ensure_machine(app.client)
    for change in app.client.request("GET", f"/containers/{container}/changes").json():
        line = f"{_KINDS[change['Kind']]} {change['Path']}\n"
        write_all(1, line.encode("utf-8", "surrogateescape"))


@click.command("export")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write to a file.")
@click.argument("container")
@pass_app
def export_command(app: App, output: Path | None, container: str) -> None:
    """Write all files of CONTAINER as a tar, to standard output or a file."""
    with files.target(output) as descriptor:
        progress.ensure_machine(app.client)
        parts = app.client.stream("GET", f"/containers/{container}/export")
        for part in parts:
            write_all(descriptor, part)


@click.command("commit")
@click.option("-a", "--author", default="", help="Who made it.")
@click.option("-m", "--message", default="", help="A comment for its history.")
@click.option("-c", "--change", "changes", multiple=True, help="A Dockerfile instruction.")
@click.option("-p", "--pause/--no-pause", default=True, help="Let it stand still meanwhile.")
@click.argument("container")
@click.argument("name", metavar="[REPOSITORY[:TAG]]", required=False)
@pass_app
def commit_command(
    app: App,
    author: str,
    message: str,
    changes: tuple[str, ...],
    pause: bool,
    container: str,
    name: str | None,
) -> None:
    """Make an image of what CONTAINER changed."""
    repository, tag = progress.split_name(name) if name else (None, None)
    query = {
        "container": container,
        "repo": repository,
        "tag": tag,
        "author": author or None,
        "comment": message or None,
        "changes": "\n".join(changes) or None,
        "pause": pause,
    }
    progress.ensure_machine(app.client)
    click.echo(app.client.request("POST", "/commit", query=query).json()["Id"])
