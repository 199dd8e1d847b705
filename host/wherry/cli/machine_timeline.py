"""machine timeline: where the time of the last starts went. Reads a file; starts nothing."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from wherry.cli.app import App, pass_app
from wherry.cli.machines import existing
from wherry.cli.output import print_table

_SHOWN = 5


@click.command("timeline")
@click.option(
    "-n",
    "--last",
    type=click.IntRange(1),
    metavar="N",
    default=_SHOWN,
    show_default=True,
    help="How many starts.",
)
@click.option("--json", "as_json", is_flag=True, help="All figures, as JSON; the newest is last.")
@click.argument("name", required=False)
@pass_app
def timeline_command(app: App, last: int, as_json: bool, name: str | None) -> None:
    """Show the phases of a machine's last starts, and how long each took."""
    starts = _read(existing(app, name).paths.timeline)[-last:]
    if as_json:
        click.echo(json.dumps(starts, indent=4))
    elif not starts:
        click.echo("it has not been started yet")
    else:
        headings, rows = table(starts)
        print_table(headings, rows)
        for start in starts:
            if start.get("failed"):
                when, reason = _moment(start), start.get("reason")
                click.echo(f"{when}: died in phase {start['failed']}: {reason}")


def table(starts: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and a row per start: a column per phase that any of them had, in seconds."""
    names = _ordered([[phase["name"] for phase in start["phases"]] for start in starts])
    rows = []
    for start in starts:
        took = {phase["name"]: f"{phase['seconds']:.2f}" for phase in start["phases"]}
        cells = [took.get(name, "") for name in names]
        if failed := start.get("failed"):
            cells = [
                f"{cell} failed" if name == failed else cell
                for name, cell in zip(names, cells, strict=True)
            ]
        total = sum(phase["seconds"] for phase in start["phases"])
        rows.append([_moment(start), start["kind"], *cells, f"{total:.2f}"])
    return ["STARTED", "KIND", *(name.upper() for name in names), "TOTAL"], rows


def _ordered(sequences: list[list[str]]) -> list[str]:
    """All names; each where most of its own sequence has it: behind what came before it there."""
    names: list[str] = []
    for sequence in sequences:
        place = 0
        for name in sequence:
            if name in names:
                place = names.index(name) + 1
            else:
                names.insert(place, name)
                place += 1
    return names


def _moment(start: dict[str, Any]) -> str:
    return datetime.fromtimestamp(start["began_ns"] / 1e9).strftime("%Y-%m-%d %H:%M:%S")


def _read(file: Path) -> list[dict[str, Any]]:
    """As `wherry.machine.timeline` writes it; what is damaged is no history."""
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return []
    return data if isinstance(data, list) else []
