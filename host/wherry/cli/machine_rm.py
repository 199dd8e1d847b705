"""machine rm."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from wherry.cli.app import App, pass_app
from wherry.cli.machines import existing
from wherry.client import Client
from wherry.errors import Conflict, WherryError


@click.command("rm")
@click.option("-f", "--force", is_flag=True, help="Do not ask; stop it when it runs.")
@click.argument("name", required=False)
@pass_app
def rm_command(app: App, force: bool, name: str | None) -> None:
    """Remove a machine, its containers and its data disk."""
    client = existing(app, name)
    state = client.request("GET", "/wherry/v1/machine").json()["state"]
    if state == "running" and not force:
        raise Conflict(
            f"machine {client.machine!r} is running",
            hint=f"wherry machine stop {client.machine}, or use --force",
        )
    if not force:
        click.confirm(
            f"Remove machine {client.machine!r}, its containers and its data disk?", abort=True
        )
    client.request("POST", "/wherry/v1/machine/stop")
    client.request("POST", "/wherry/v1/engine/stop")
    _wait_for_engine(client)
    for directory in {client.paths.root, client.paths.sockets}:
        _remove(directory)
    click.echo(client.machine)


def _wait_for_engine(client: Client) -> None:
    """The engine holds its lock until the last moment."""
    from wherry.osutil import lock_file

    with lock_file(client.paths.engine_lock, timeout=15.0):
        pass


def _remove(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise WherryError(f"cannot remove {directory}: {error.strerror}") from error
