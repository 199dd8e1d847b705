"""machine rm."""

from __future__ import annotations

import click

from wherry.cli.app import App, pass_app
from wherry.cli.machines import existing, remove_files, settle
from wherry.errors import Conflict


@click.command("rm")
@click.option("-f", "--force", is_flag=True, help="Do not ask; stop it when it runs.")
@click.option(
    "--keep-disk",
    is_flag=True,
    help="Keep containers and volumes; create NAME, or --disk-from NAME, takes them up again.",
)
@click.argument("name", required=False)
@pass_app
def rm_command(app: App, force: bool, keep_disk: bool, name: str | None) -> None:
    """Remove a machine, its containers and its data disk."""
    client = existing(app, name)
    state = client.request("GET", "/wherry/v1/machine").json()["state"]
    if state == "running" and not force:
        raise Conflict(
            f"machine {client.machine!r} is running",
            hint=f"wherry machine stop {client.machine}, or use --force",
        )
    if not force:
        what = "and keep its data disk" if keep_disk else "its containers and its data disk"
        click.confirm(f"Remove machine {client.machine!r}, {what}?", abort=True)
    client.request("POST", "/wherry/v1/machine/remove", query={"keep_disk": keep_disk})
    settle(client, asked=True)
    remove_files(client.paths, keep_disk=keep_disk)
    click.echo(client.machine)
