"""`wherry machine`: everything about machines; a command's module is imported when it is run."""

from __future__ import annotations

import click

from wherry.cli.lazy import LazyGroup

_MODULES = {
    "console": "wherry.cli.machine_look",
    "inspect": "wherry.cli.machine_look",
    "ls": "wherry.cli.machine_look",
    "rm": "wherry.cli.machine_rm",
    "start": "wherry.cli.machine_power",
    "stop": "wherry.cli.machine_power",
    "upgrade": "wherry.cli.machine_upgrade",
}
"""Command to `module`, where it is called `COMMAND_command`, or `module:attribute`."""

_SUMMARIES = {
    "console": "Show the last lines of the machine's serial console",
    "inspect": "Show everything about a machine, as JSON",
    "ls": "List the machines",
    "rm": "Remove a machine, its containers and its data disk",
    "start": "Start a machine",
    "stop": "Stop a machine and the containers in it",
    "upgrade": "Take the newest signed packages for the VM",
}


@click.group("machine", cls=LazyGroup, modules=_MODULES, summaries=_SUMMARIES)
def machine_command() -> None:
    """Manage the virtual machines that run the containers."""
