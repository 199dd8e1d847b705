"""diff, commit, export: what is in a container, and images made of it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from wherry.cli import progress
from wherry.cli.app import App, pass_app
from wherry.cli.output import write_all
from wherry.errors import InvalidInput, StorageError

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
    if output is None and sys.stdout.isatty():
        raise InvalidInput("refusing to write a tar to a terminal", hint="use -o, or redirect it")
    progress.ensure_machine(app.client)
    parts = app.client.stream("GET", f"/containers/{container}/export")
    with _target(output) as descriptor:
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


@contextmanager
def _target(output: Path | None) -> Iterator[int]:
    """Standard output, or a file that gets its name when it is complete."""
    if output is None:
        yield 1
        return
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{output.name}-", dir=output.parent)
    except OSError as error:
        raise StorageError(f"cannot write {output}: {error.strerror}") from error
    try:
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        Path(name).replace(output)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
