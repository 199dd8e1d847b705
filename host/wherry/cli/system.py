"""version, info."""

from __future__ import annotations

import platform
from typing import Any

import click

from wherry import __version__
from wherry.cli.app import App, pass_app
from wherry.cli.output import print_objects
from wherry.units import human_size


@click.command("version")
@click.option("-f", "--format", "format_", metavar="FORMAT", help="json, or a Go template.")
@pass_app
def version_command(app: App, format_: str | None) -> None:
    """Show the versions of client and engine."""
    client = {
        "Version": __version__,
        "ApiVersion": "1.50",
        "Python": platform.python_version(),
        "Os": platform.system().lower(),
        "Arch": platform.machine(),
    }
    server = app.client.request("GET", "/version").json()
    if format_ is not None:
        print_objects([{"Client": client, "Server": server}], format_)
        return
    _section("Client", client)
    _section(
        "Server", {key: server[key] for key in ("Version", "ApiVersion", "KernelVersion", "Arch")}
    )


@click.command("info")
@click.option("-f", "--format", "format_", metavar="FORMAT", help="json, or a Go template.")
@pass_app
def info_command(app: App, format_: str | None) -> None:
    """Show facts about the engine and the machine."""
    facts = app.client.request("GET", "/info").json()
    if format_ is not None:
        print_objects([facts], format_)
        return
    machine = app.client.request("GET", "/wherry/v1/machine").json()
    _section(
        "Engine",
        {
            "Version": facts["ServerVersion"],
            "Containers": facts["Containers"],
            "Running": facts["ContainersRunning"],
            "Images": facts["Images"],
            "Socket": app.client.paths.api_socket,
            "Home": app.home.root,
        },
    )
    _section(
        "Machine",
        {
            "Name": machine.get("name", ""),
            "State": machine["state"],
            "Accelerator": machine.get("accel", ""),
            "Kernel": facts["KernelVersion"],
            "Architecture": facts["Architecture"],
            "CPUs": facts["NCPU"],
            "Memory": human_size(facts["MemTotal"]),
        },
    )


def _section(title: str, facts: dict[str, Any]) -> None:
    click.echo(f"{title}:")
    for name, value in facts.items():
        click.echo(f" {name + ':':<16}{value}")
