"""image explore, diff: what is in images."""

from __future__ import annotations

import json
from typing import Any

import click

from wherry.cli.app import App, pass_app
from wherry.cli.output import print_rows
from wherry.units import human_size

_LAYER_COLUMNS = {
    "Layer": "LAYER",
    "Size": "SIZE",
    "Added": "ADDED",
    "Changed": "CHANGED",
    "Removed": "REMOVED",
    "Wasted": "WASTED",
    "CreatedBy": "CREATED BY",
}
_WORST_COLUMNS = {"Wasted": "WASTED", "Times": "TIMES", "Path": "PATH"}
_CREATED_BY_WIDTH = 60
_LETTERS = {"added": "A", "changed": "C", "removed": "D"}


@click.command("explore")
@click.option("--json", "as_json", is_flag=True, help="All of it, with every file, as JSON.")
@click.option("--files", is_flag=True, help="Every file of every layer.")
@click.argument("image")
@pass_app
def explore_command(app: App, as_json: bool, files: bool, image: str) -> None:
    """Show what each layer of IMAGE adds, changes and removes, and what later ones waste of it."""
    query = {"files": as_json or files}
    found = app.client.request("GET", f"/wherry/v1/images/{image}/explore", query=query).json()
    if as_json:
        click.echo(json.dumps(found, indent=4))
        return
    rows = [_layer_row(number, layer) for number, layer in enumerate(found["layers"])]
    print_rows(rows, _LAYER_COLUMNS, format=None)
    if files:
        for number, layer in enumerate(found["layers"]):
            _print_files(number, layer)
    if found["worst"]:
        click.echo()
        worst = [
            {"Wasted": human_size(it["wasted"]), "Times": it["times"], "Path": it["path"]}
            for it in found["worst"]
        ]
        print_rows(worst, _WORST_COLUMNS, format=None)
    click.echo()
    click.echo(
        f"{human_size(found['size'])} in {len(rows)} layers, {human_size(found['wasted'])} wasted: "
        f"{found['efficiency']:.1%} efficient"
    )


def _layer_row(number: int, layer: dict[str, Any]) -> dict[str, Any]:
    command = " ".join(layer["created_by"].split())
    if len(command) > _CREATED_BY_WIDTH:
        command = command[: _CREATED_BY_WIDTH - 1] + "…"
    return {
        "Layer": number,
        "Size": human_size(layer["size"]),
        "Added": layer["added"],
        "Changed": layer["changed"],
        "Removed": layer["removed"],
        "Wasted": human_size(layer["wasted"]),
        "CreatedBy": command,
    }


def _print_files(number: int, layer: dict[str, Any]) -> None:
    click.echo(f"\nLayer {number}:")
    for what, letter in _LETTERS.items():
        for file in layer[f"{what}_files"]:
            size = human_size(file["size"]) if file["kind"] == "file" else file["kind"]
            click.echo(f"{letter} {file['path']} ({size})")


@click.command("diff")
@click.option("--json", "as_json", is_flag=True, help="All that is known, as JSON.")
@click.argument("a")
@click.argument("b")
@pass_app
def diff_command(app: App, as_json: bool, a: str, b: str) -> None:
    """Show the files that differ between the images A and B: A added, C changed, D removed in B.

    Type, mode, owner, size and content count, times do not.
    """
    found = app.client.request("GET", "/wherry/v1/images/diff", query={"a": a, "b": b}).json()
    if as_json:
        click.echo(json.dumps(found, indent=4))
        return
    for difference in found:
        letter = _LETTERS[difference["change"]]
        why = f" ({', '.join(difference['differs'])})" if difference["differs"] else ""
        click.echo(f"{letter} {difference['path']}{why}")
