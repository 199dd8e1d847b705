"""docs/commands.md: every command with its flags, as the command line knows them.

`python tests/commands_page.py` (`make docs`) writes it; a unit test says when it is out of date.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "commands.md"

BAR = "\\|"
_MANY = 10
"""Flags: so many are not listed twice."""

_HEAD = """# Commands

Every command and flag, as `wherry COMMAND --help` says them: `make docs` writes this page. What is
behind a command stands in the pages that the [README](../README.md) names. With `wherry -M NAME` a
command talks to another machine than the current one.
"""


def commands() -> Iterator[tuple[list[str], click.Command]]:
    """Each command that does something, with its words behind `wherry`; sorted."""
    from wherry.cli.main import wherry

    yield from _below([], wherry)


def page() -> str:
    """The whole page."""
    known: dict[str, tuple[click.Command, list[str]]] = {}
    return _HEAD + "".join(_section(" ".join(words), it, known) for words, it in commands())


def _below(words: list[str], command: click.Command) -> Iterator[tuple[list[str], click.Command]]:
    if not isinstance(command, click.Group):
        yield words, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        if found is not None and not found.hidden:
            yield from _below([*words, name], found)


def _section(
    name: str, command: click.Command, known: dict[str, tuple[click.Command, list[str]]]
) -> str:
    """One command; what it shares with one of `known` is not said again."""
    arguments = [_argument(it) for it in command.params if isinstance(it, click.Argument)]
    rows = [_row(it) for it in command.params if isinstance(it, click.Option) and not it.hidden]
    usage = " ".join(["wherry", name, *(["[FLAGS]"] if rows else []), *arguments])
    section = f"\n## {name}\n\n`{usage}`\n"
    for other, (its, theirs) in known.items():
        if its is command:
            return f"{section}\nThe same as [{other}](#{other.replace(' ', '-')}).\n"
        if len(theirs) >= _MANY and set(theirs) <= set(rows):
            section += f"\nThe flags of [{other}](#{other.replace(' ', '-')}), and those below.\n"
            rows = [row for row in rows if row not in theirs]
    known[name] = command, rows
    text = "".join(map(_paragraph, (command.help or "").split("\n\n")))
    table = "\n| flag | |\n| --- | --- |\n" if rows else ""
    return f"{section}{text}{table}{''.join(rows)}"


def _paragraph(text: str) -> str:
    text = inspect.cleandoc(text)
    if text.startswith("\b"):  # click's mark of lines that are not to be filled
        return f"\n```\n{inspect.cleandoc(text[1:])}\n```\n"
    return f"\n{' '.join(text.split())}\n" if text else ""


def _argument(it: click.Argument) -> str:
    name = it.metavar or (it.name or "").upper()
    name = name if it.required or name.startswith("[") else f"[{name}]"
    return f"{name}..." if it.nargs < 0 and not it.metavar else name


def _row(it: click.Option) -> str:
    names = ", ".join(sorted(it.opts, key=len))
    if it.secondary_opts:
        names += f" / {', '.join(it.secondary_opts)}"
    if not it.is_flag and not it.count:
        choices = it.type.choices if isinstance(it.type, click.Choice) else []
        names += f" {it.metavar or '|'.join(choices) or it.type.name.upper()}"
    cells = (f"`{names}`", " ".join((it.help or "").split()))
    return f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |\n"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "host"))
    PAGE.write_text(page(), encoding="utf-8")
