"""Tables and `--format`, as Docker prints them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from wherry.cli import template

Row = Mapping[str, Any]
_GAP = 3


def print_rows(
    rows: Sequence[Row], columns: Mapping[str, str], *, format: str | None, quiet: str | None = None
) -> None:
    """Print rows as a table, as JSON lines, by a template, or only the column `quiet`.

    Args:
        columns: field to heading, in order: the default table.
        format: as Docker's: None or `table`, `table TEMPLATE`, `json`, or a template.
    """
    if quiet is not None and format is None:
        for row in rows:
            click.echo(row[quiet])
    elif format == "json":
        for row in rows:
            click.echo(json.dumps(dict(row)))
    elif format is None or format == "table":
        _print_table(
            list(columns.values()), [[str(row[field]) for field in columns] for row in rows]
        )
    elif format.startswith("table "):
        _print_template_table(rows, columns, format.removeprefix("table ").strip())
    else:
        for row in rows:
            click.echo(template.render(format, dict(row)))


def print_objects(objects: Sequence[Any], format: str | None) -> None:
    """`inspect`: a JSON array, or the template (or `json`) for each object."""
    if format is None:
        click.echo(json.dumps(objects, indent=4))
        return
    for item in objects:
        click.echo(json.dumps(item) if format == "json" else template.render(format, item))


def _print_template_table(rows: Sequence[Row], columns: Mapping[str, str], text: str) -> None:
    headings = [columns.get(name, name.upper()) for name in template.fields(text)]
    cells = [template.render(text, dict(row)).split("\t") for row in rows]
    _print_table(headings, cells)


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [list(headings), *map(list, rows)]
    widths = [
        max(len(line[index]) for line in lines if index < len(line))
        for index in range(len(headings))
    ]
    for line in lines:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        click.echo((" " * _GAP).join(padded).rstrip())
