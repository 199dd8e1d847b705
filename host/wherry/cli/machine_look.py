"""machine ls, inspect, console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from wherry.cli.app import App, pass_app
from wherry.cli.machines import existing, machine_facts, machine_names
from wherry.cli.output import print_objects, print_rows, write_all

_COLUMNS = {
    "Name": "NAME",
    "State": "STATE",
    "Arch": "ARCH",
    "CPUs": "CPUS",
    "Memory": "MEMORY",
    "Disk": "DISK",
    "Kernel": "KERNEL",
    "Pending": "NEXT START",
    "Default": "DEFAULT",
}


@click.command("ls")
@click.option("--format", "format_", metavar="FORMAT", help="table, json, or a Go template.")
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@pass_app
def ls_command(app: App, format_: str | None, quiet: bool) -> None:
    """List the machines."""
    rows = []
    for name in machine_names(app):
        facts = machine_facts(app, name)
        rows.append(
            {
                "Name": name,
                "State": facts.get("state", "stopped"),
                "Arch": facts.get("arch", ""),
                "CPUs": facts.get("cpus", ""),
                "Memory": f"{facts['memory_mib']}MiB" if "memory_mib" in facts else "",
                "Disk": f"{facts['disk_gib']}GiB" if "disk_gib" in facts else "",
                "Kernel": facts.get("kernel", ""),
                "Pending": _pending(facts),
                "Default": "*" if name == app.settings.default_machine else "",
            }
        )
    print_rows(rows, _COLUMNS, format=format_, quiet="Name" if quiet else None)


@click.command("inspect")
@click.option("-f", "--format", "format_", metavar="FORMAT", help="json, or a Go template.")
@click.argument("name", required=False)
@pass_app
def inspect_command(app: App, format_: str | None, name: str | None) -> None:
    """Show everything about a machine, as JSON."""
    client = existing(app, name)
    print_objects([client.request("GET", "/wherry/v1/machine").json()], format_)


@click.command("console")
@click.option("-n", "--lines", type=int, default=200, show_default=True, help="How many lines.")
@click.argument("name", required=False)
@pass_app
def console_command(app: App, lines: int, name: str | None) -> None:
    """Show the last lines of the machine's serial console."""
    client = existing(app, name)
    reply = client.request("GET", "/wherry/v1/machine/console", query={"lines": lines})
    write_all(1, reply.body)


def _pending(facts: Mapping[str, Any]) -> str:
    """What the next start changes, as in `cpus=4 memory_mib=2048`."""
    changes = facts.get("pending") or {}
    return " ".join(f"{name}={change['next']}" for name, change in changes.items())
