"""machine template."""

from __future__ import annotations

import click

from wherry.cli.app import App, pass_app
from wherry.cli.machines import existing
from wherry.errors import MachineError


@click.command("template")
@click.argument("name", required=False)
@pass_app
def template_command(app: App, name: str | None) -> None:
    """Save a machine now, so that its next start is a restore.

    This also happens by itself, in the background after a boot. Here it is waited for: for images
    and caches of CI that are to have it. Prints its key.
    """
    client = existing(app, name)
    template = client.request("POST", "/wherry/v1/machine/template").json()
    if template["status"] != "good":
        raise MachineError(
            f"such a machine cannot be restored: {template['reason']}", hint="its starts are boots"
        )
    click.echo(template["key"])
