"""`wherry image bootstrap`: a Debian image from signed packages, without a registry."""

from __future__ import annotations

from pathlib import Path

import click

from wherry.cli import progress
from wherry.cli.app import App, pass_app
from wherry.errors import InvalidInput, StorageError


@click.command("bootstrap")
@click.option("-t", "--tag", "name", metavar="NAME[:TAG]", help="What the image is called.")
@click.option("--include", multiple=True, metavar="PKG,…", help="More packages.")
@click.option("--arch", metavar="ARCH", help="Debian's name of the architecture.")
@click.option("--slim", is_flag=True, help="Without documentation and translations.")
@click.option("--refresh", is_flag=True, help="Take the newest packages, not those of last time.")
@click.option(
    "--lock",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Exactly the packages of this file; it is written when it does not exist.",
)
@click.option("-q", "--quiet", is_flag=True, help="Only the image's id.")
@click.argument("distribution", default="debian:trixie")
@pass_app
def bootstrap_command(
    app: App,
    name: str | None,
    include: tuple[str, ...],
    arch: str | None,
    slim: bool,
    refresh: bool,
    lock: Path | None,
    quiet: bool,
    distribution: str,
) -> None:
    """Make an image of DISTRIBUTION (debian:trixie) from its packages.

    The packages of the first time are taken again: the image stays the same until --refresh.
    """
    text = _read(lock) if lock is not None else None
    if text is not None and refresh:
        raise InvalidInput(f"{lock} says which packages", hint="leave out --refresh or --lock")
    body = {
        "distribution": distribution,
        "name": ":".join(progress.split_name(name)) if name else None,
        "architecture": arch,
        "include": [item for part in include for item in part.split(",") if item],
        "slim": slim,
        "refresh": refresh,
        "lock": text,
    }
    progress.ensure_machine(app.client, quiet=quiet)
    lines = app.client.lines("POST", "/wherry/v1/images/bootstrap", body=body)
    made = progress.follow(lines, "image", quiet=quiet)
    if lock is not None and text is None:
        _write(lock, made["Lock"])
    for notice in made["Notices"]:
        click.echo(f"wherry: {notice}", err=True)
    click.echo(made["Image"]["Id"])


def _read(lock: Path) -> str | None:
    try:
        return lock.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read {lock}: {error}") from error


def _write(lock: Path, text: str) -> None:
    try:
        lock.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {lock}: {error.strerror}") from error
