"""machine upgrade."""

from __future__ import annotations

from typing import Any

import click

from wherry.cli import progress
from wherry.cli.app import App, pass_app


@click.command("upgrade")
@click.argument("name", required=False)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@pass_app
def upgrade_command(app: App, name: str | None, quiet: bool) -> None:
    """Take the newest signed packages for the VM (kernel fixes); used from the next start on."""
    client = app.client_of(name or app.machine)
    lines = client.lines("POST", "/wherry/v1/machine/upgrade")
    changes: list[dict[str, Any]] = progress.follow(lines, "changed", quiet=quiet)
    for change in changes:
        click.echo(f"{change['name']}: {change['old'] or 'new'} -> {change['new'] or 'gone'}")
    if not changes:
        click.echo("everything is up to date")
