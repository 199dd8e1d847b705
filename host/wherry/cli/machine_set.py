"""machine set, use: what a machine has, and which one commands talk to."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import click

from wherry.cli.app import App, pass_app
from wherry.cli.machine_options import machine_options, machine_values
from wherry.cli.machines import existing
from wherry.errors import InvalidInput, WherryError

_KEY = "default_machine"
_VARIABLE = "WHERRY_MACHINE"


@click.command("set")
@machine_options
@click.argument("name", required=False)
@pass_app
def set_command(app: App, name: str | None, **flags: Any) -> None:
    """Change what a machine has: its disk grows at once, all else counts from its next start on."""
    values = machine_values(flags)
    if not values:
        raise InvalidInput("nothing to change", hint="wherry machine set --help shows what can be")
    client = existing(app, name)
    facts = client.request("POST", "/wherry/v1/machine/set", body=values).json()
    for field in values:
        if change := facts["pending"].get(field):
            when = f"at the next start (now {change['now']})"
            click.echo(f"{field}: {change['next']} {when}", err=True)
        else:
            click.echo(f"{field}: {facts[field]}", err=True)
    click.echo(client.machine)


@click.command("use")
@click.argument("name")
@pass_app
def use_command(app: App, name: str) -> None:
    """Make a machine the one that commands talk to (default_machine in config.yml)."""
    existing(app, name)
    write_setting(app.home.settings_file, _KEY, name)
    chosen = os.environ.get(_VARIABLE)
    if chosen and chosen != name:
        print(f"wherry: {_VARIABLE}={chosen} is set, and wins", file=sys.stderr)
    click.echo(name)


def write_setting(file: Path, key: str, value: str) -> None:
    """Set one key of config.yml; everything else, comments too, stays as it is.

    Raises:
        InvalidInput: the file is not one that this can be done to.
    """
    import yaml

    from wherry.osutil import atomic_write, private_directory

    text = file.read_text(encoding="utf-8") if file.exists() else ""
    changed = with_setting(text, key, value)
    try:
        before, after = yaml.safe_load(text) or {}, yaml.safe_load(changed)
    except yaml.YAMLError as error:
        raise InvalidInput(f"{file} is not YAML: {error}") from error
    if not isinstance(before, dict) or after != {**before, key: value}:
        raise InvalidInput(f"{file} is written in an unusual way", hint=f"set {key} in it yourself")
    private_directory(file.parent)
    try:
        atomic_write(file, changed.encode())
    except OSError as error:
        raise WherryError(f"cannot write {file}: {error.strerror}") from error


def with_setting(text: str, key: str, value: str) -> str:
    """YAML text with `key` (at the top level) set to the string `value`."""
    line = f'{key}: "{value}"'
    changed, count = re.subn(
        rf"^[\"']?{key}[\"']?[ \t]*:.*$", line, text, count=1, flags=re.MULTILINE
    )
    if count:
        return changed
    return text + ("" if not text or text.endswith("\n") else "\n") + line + "\n"
