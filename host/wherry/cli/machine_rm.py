"""machine rm."""

from __future__ import annotations

import json

import click

from wherry.cli.app import App, pass_app
from wherry.cli.clearing import remove
from wherry.cli.machines import existing, remove_files, settle
from wherry.client import Client
from wherry.errors import Conflict, EngineUnreachable


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
    try:
        state = client.request("GET", "/wherry/v1/machine").json()["state"]
    except EngineUnreachable:
        if not force:
            raise
        _remove_service(app, client.machine)
        _remove_without_engine(client, keep_disk)
        return
    if state == "running" and not force:
        raise Conflict(
            f"machine {client.machine!r} is running",
            hint=f"wherry machine stop {client.machine}, or use --force",
        )
    if not force:
        what = "and keep its data disk" if keep_disk else "its containers and its data disk"
        click.confirm(f"Remove machine {client.machine!r}, {what}?", abort=True)
    if _remove_service(app, client.machine):
        client.close()
    client.request("POST", "/wherry/v1/machine/remove", query={"keep_disk": keep_disk})
    settle(client, asked=True)
    remove_files(client.paths, keep_disk=keep_disk)
    click.echo(client.machine)


def _remove_service(app: App, machine: str) -> bool:
    """It would start an engine for a machine that is gone. False: there is none."""
    from wherry.cli.service import service_item

    item = service_item(app, machine)
    if item is None:
        return False
    remove(item)
    return True


def _remove_without_engine(client: Client, keep_disk: bool) -> None:
    """No engine can be started, perhaps since the machine's state is damaged or a newer Wherry's:
    end its QEMU by the record of it. Any machine's next engine gives up what it holds."""
    from wherry.osutil import ProcessIdentity, terminate

    try:
        record = json.loads(client.paths.qemu_record.read_bytes())
        terminate(ProcessIdentity(**record["identity"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none that could be read: then none is known to run
    remove_files(client.paths, keep_disk=keep_disk)
    click.echo(client.machine)
