"""`wherry machine`: everything about machines; a command's module is imported when it is run."""

from __future__ import annotations

import click

from wherry.cli.lazy import LazyGroup

_MODULES = {
    "clone": "wherry.cli.machine_create",
    "console": "wherry.cli.machine_look",
    "create": "wherry.cli.machine_create",
    "inspect": "wherry.cli.machine_look",
    "ls": "wherry.cli.machine_look",
    "rm": "wherry.cli.machine_rm",
    "set": "wherry.cli.machine_set",
    "snapshot": "wherry.cli.machine_snapshot",
    "ssh": "wherry.cli.machine_ssh",
    "ssh-config": "wherry.cli.machine_ssh:ssh_config_command",
    "ssh-proxy": "wherry.cli.machine_ssh:ssh_proxy_command",
    "start": "wherry.cli.machine_power",
    "stop": "wherry.cli.machine_power",
    "template": "wherry.cli.machine_template",
    "timeline": "wherry.cli.machine_timeline",
    "upgrade": "wherry.cli.machine_upgrade",
    "use": "wherry.cli.machine_set",
}
"""Command to `module`, where it is called `COMMAND_command`, or `module:attribute`."""

_SUMMARIES = {
    "clone": "Copy a machine that is off",
    "console": "Show the last lines of the machine's serial console",
    "create": "Make a machine",
    "inspect": "Show everything about a machine, as JSON",
    "ls": "List the machines",
    "rm": "Remove a machine, its containers and its data disk",
    "set": "Change what a machine has",
    "snapshot": "Save a machine as it stands, and go back to that",
    "ssh": "Log in to a machine, or run a command in it",
    "ssh-config": "Print a machine's section for ~/.ssh/config",
    "ssh-proxy": "Connect standard input and output to a machine's SSH server",
    "start": "Start a machine",
    "stop": "Stop a machine and the containers in it",
    "template": "Save a machine now, so that its next start is a restore",
    "timeline": "Show where the time of the last starts went",
    "upgrade": "Take the newest signed packages for the VM",
    "use": "Make a machine the one that commands talk to",
}


@click.group("machine", cls=LazyGroup, modules=_MODULES, summaries=_SUMMARIES)
def machine_command() -> None:
    """Manage the virtual machines that run the containers."""
