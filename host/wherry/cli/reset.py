"""reset, uninstall: begin anew, or leave nothing behind. Both say first what they remove."""

from __future__ import annotations

from collections.abc import Sequence

import click

from wherry.cli.app import App, pass_app
from wherry.cli.clearing import (
    RESET_HOOKS,
    Item,
    hooked_items,
    items_of_reset,
    left_over,
    remove,
    stop_machines,
)
from wherry.units import human_size


@click.command("reset")
@click.option("--all", "everything", is_flag=True, help="Also the settings and package locks.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@pass_app
def reset_command(app: App, everything: bool, force: bool) -> None:
    """Remove all machines, containers, images and caches; settings and logins stay.

    Logins are Docker's config.json and never touched. To repair something, try wherry doctor --fix.
    """
    items = [*hooked_items(app, RESET_HOOKS), *items_of_reset(app.home, everything=everything)]
    _clear(app, items, force=force)


@click.command("uninstall")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@pass_app
def uninstall_command(app: App, force: bool) -> None:
    """Remove everything that Wherry has put on this computer, but not the program itself."""
    from wherry.cli.uninstalling import how_to_go

    services = hooked_items(app, RESET_HOOKS)
    items = [*services, *items_of_reset(app.home, everything=True), *hooked_items(app)]
    _clear(app, items, force=force)
    _remove_home(app)
    click.echo(f"The program itself is removed by: {how_to_go()}")


def _clear(app: App, items: Sequence[Item], *, force: bool) -> None:
    if not items:
        click.echo("there is nothing to remove")
        return
    click.echo("This is removed:")
    for item in items:
        click.echo(f"  {item.describe()}")
    if not force:
        total = human_size(sum(item.bytes for item in items))
        click.confirm(f"Remove all that ({total})? It cannot be undone", abort=True)
    for item in items:
        if item.first:
            remove(item)
    stop_machines(app, lambda text: click.echo(text, err=True))
    for item in items:
        if not item.first:
            remove(item)
    click.echo(f"{len(items)} removed")


def _remove_home(app: App) -> None:
    """The state directory, unless there is something in it that is not ours."""
    _drop_empty(app)
    if others := left_over(app.home):
        click.echo(f"{app.home.root} stays: it holds {', '.join(others[:5])}, not Wherry's")


def _drop_empty(app: App) -> None:
    for directory in (app.home.machines, app.home.root):
        if directory.is_dir() and not directory.is_symlink() and not any(directory.iterdir()):
            directory.rmdir()
