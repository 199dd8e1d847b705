"""machine start, stop."""

from __future__ import annotations

import click

from wherry.cli import progress
from wherry.cli.app import App, pass_app
from wherry.cli.machines import existing


@click.command("start")
@click.argument("name", required=False)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("--no-template", is_flag=True, help="Boot it, restore no saved machine.")
@pass_app
def start_command(app: App, name: str | None, quiet: bool, no_template: bool) -> None:
    """Start a machine (made when it does not exist)."""
    name = name or app.machine
    progress.start_machine(app.client_of(name), quiet=quiet, template=not no_template)
    click.echo(name)


@click.command("stop")
@click.argument("name", required=False)
@pass_app
def stop_command(app: App, name: str | None) -> None:
    """Stop a machine and the containers in it."""
    client = existing(app, name)
    client.request("POST", "/wherry/v1/machine/stop")
    click.echo(client.machine)
