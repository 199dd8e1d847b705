"""machine create, clone: the two ways that a machine comes into being."""

from __future__ import annotations

from typing import Any

import click

from wherry.cli import progress
from wherry.cli.app import App, pass_app
from wherry.cli.machine_options import machine_options, machine_values
from wherry.cli.machines import existing, has_configuration, machine_names, remove_files, settle
from wherry.client import Client
from wherry.errors import Conflict, WherryError
from wherry.paths import check_machine_name


@click.command("create")
@machine_options
@click.option(
    "--disk-from", metavar="NAME", help="Take the disk of a machine removed with --keep-disk."
)
@click.argument("name")
@pass_app
def create_command(app: App, name: str, disk_from: str | None, **flags: Any) -> None:
    """Make a machine; print its name. A disk that was kept under that name is taken up again."""
    values = machine_values(flags)
    if has_configuration(app, check_machine_name(name)):
        raise Conflict(f"there is a machine {name!r} already", hint="wherry machine set changes it")
    fresh = name not in machine_names(app)
    if disk_from is not None:
        if not fresh:
            raise Conflict(f"machine {name!r} has a disk of its own", hint="take another name")
        values["disk_from"] = check_machine_name(disk_from)
    client = app.client_of(name)
    try:
        client.request("POST", "/wherry/v1/machine/create", body=values)
    except WherryError:
        if fresh and client.paths.root.exists() and not has_configuration(app, name):
            settle(client)
            remove_files(client.paths)
        raise
    settle(client)
    if disk_from is not None:
        _take_disk(app.client_of(disk_from), client)
    click.echo(name)


@click.command("clone")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.argument("source", metavar="[NAME]", required=False)
@click.argument("name", metavar="NEW")
@pass_app
def clone_command(app: App, source: str | None, name: str, quiet: bool) -> None:
    """Copy a machine that is off, with its containers and volumes, but not its identity."""
    client = existing(app, source)
    lines = client.lines(
        "POST", "/wherry/v1/machine/clone", body={"name": check_machine_name(name)}
    )
    click.echo(progress.follow(lines, "cloned", quiet=quiet))


def _take_disk(source: Client, target: Client) -> None:
    """Move what was kept. The rows last: a disk without them is an empty machine, never the other
    way round."""
    from wherry.osutil import fsync_directory, lock_file, replace_file

    with lock_file(source.paths.engine_lock), lock_file(target.paths.engine_lock):
        try:
            replace_file(source.paths.data_disk, target.paths.data_disk)
            if source.paths.state_db.exists():
                replace_file(source.paths.state_db, target.paths.state_db)
            fsync_directory(target.paths.root)
        except OSError as error:
            raise WherryError(
                f"cannot move the disk of {source.machine!r}: {error.strerror}"
            ) from error
    # The new machine's engine holds the images of its containers now; only then may the old one's
    # leases go, and they go with its directory.
    target.request("GET", "/wherry/v1/machine")
    remove_files(source.paths)
