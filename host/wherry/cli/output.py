"""What commands print: tables and `--format` as Docker has them, and containers' raw bytes.

Most commands import this and end at once: what is slow to import stays out.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from wherry.cli import template
from wherry.errors import InvalidInput

Row = Mapping[str, Any]
_GAP = 3
_HEADER = struct.Struct(">BxxxI")
"""Docker's multiplexed stream: stream number and length of what follows."""


def print_rows(
    rows: Sequence[Row], columns: Mapping[str, str], *, format: str | None, quiet: str | None = None
) -> None:
    """Print rows as a table, as JSON lines, by a template, or only the column `quiet`.

    Args:
        columns: field to heading, in order: the default table.
        format: as Docker's: None or `table`, `table TEMPLATE`, `json`, or a template.
    """
    if format is not None:
        template.check(format)
    if quiet is not None and format is None:
        for row in rows:
            click.echo(row[quiet])
    elif format == "json":
        for row in rows:
            click.echo(json.dumps(dict(row)))
    elif format is None or format == "table":
        print_table(
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


def demultiplex(chunks: Iterator[bytes]) -> None:
    """Docker's multiplexed stream to our standard output and standard error."""
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        position = 0
        while len(buffer) - position >= _HEADER.size:
            stream, length = _HEADER.unpack_from(buffer, position)
            end = position + _HEADER.size + length
            if len(buffer) < end:
                break
            write_all(2 if stream == 2 else 1, bytes(buffer[position + _HEADER.size : end]))
            position = end
        del buffer[:position]


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything: a pipe may take less than it was given."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def signal_name(text: str) -> str:
    """`SIGTERM`, `TERM` or `15` as `SIGTERM`-like text for the engine. Raises InvalidInput."""
    name = text.upper()
    if name.isdigit():
        return name
    name = name if name.startswith("SIG") else f"SIG{name}"
    if len(name) <= 3:
        raise InvalidInput(f"{text!r} is not a signal")
    return name


def _print_template_table(rows: Sequence[Row], columns: Mapping[str, str], text: str) -> None:
    headings = [columns.get(name, name.upper()) for name in template.fields(text)]
    cells = [template.render(text, dict(row)).split("\t") for row in rows]
    print_table(headings, cells)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their longest cell."""
    lines = [list(headings), *map(list, rows)]
    widths = [
        max(len(line[index]) for line in lines if index < len(line))
        for index in range(len(headings))
    ]
    for line in lines:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        click.echo((" " * _GAP).join(padded).rstrip())
