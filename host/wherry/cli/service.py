"""service: the engine's socket is there after a reboot; and a new engine for an old one."""

from __future__ import annotations

import json

import click

from wherry.cli.app import App, pass_app
from wherry.cli.clearing import Item
from wherry.cli.lazy import PlainGroup
from wherry.cli.machines import existing, machine_names
from wherry.errors import WherryError
from wherry.service.definition import describe_service, service_label
from wherry.service.managers import session_manager

_NOT_INSTALLED = 3
"""systemctl(1), LSB: not running."""

_LOCK_SECONDS = 30.0


@click.group("service", cls=PlainGroup)
def service_command() -> None:
    """Have the engine's socket there after a reboot, and its containers."""


@service_command.command("install")
@click.argument("name", metavar="[MACHINE]", required=False)
@pass_app
def install_command(app: App, name: str | None) -> None:
    """Install the engine of a machine as a service of your session, and start it.

    Its socket is there from then on. Containers with a restart policy come back with it: the engine
    starts the machine for them, unless it was stopped by hand. Install again after moving Wherry.
    """
    client = existing(app, name) if name else app.client
    manager, service = session_manager(), describe_service(app.home, client.machine)
    manager.check()
    from wherry.osutil import lock_file, private_directory

    for directory in (app.home.root, client.paths.root, client.paths.sockets):
        private_directory(directory)
    # While nobody else starts an engine: the manager takes over the socket.
    with lock_file(client.paths.start_lock, timeout=_LOCK_SECONDS):
        if manager.holds_socket and client.running():
            client.request("POST", "/wherry/v1/engine/stop")
            client.close()
            with lock_file(client.paths.engine_lock, timeout=_LOCK_SECONDS):
                pass
        hints = manager.install(service)
    client.request("GET", "/_ping")
    click.echo(service.label)
    for hint in hints:
        click.echo(f"hint: {hint}", err=True)


@service_command.command("status")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.argument("name", metavar="[MACHINE]", required=False)
@pass_app
def status_command(app: App, as_json: bool, name: str | None) -> int:
    """Show whether a machine's service is installed; exit code 3 when it is not."""
    machine = name or app.machine
    client = app.client_of(machine)
    manager, label = session_manager(), service_label(app.home, machine)
    installed = manager.installed(label)
    facts = {
        "machine": machine,
        "installed": installed,
        "listening": manager.listening(label) if installed else None,
        "engine": _engine_version(app, machine),
        "manager": manager.name,
        "place": manager.place(label),
        "socket": str(client.paths.api_socket),
    }
    if as_json:
        click.echo(json.dumps(facts))
    else:
        for key, value in facts.items():
            click.echo(f"{key + ':':<12}{_in_words(value)}")
    return 0 if installed else _NOT_INSTALLED


@service_command.command("uninstall")
@click.argument("name", metavar="[MACHINE]", required=False)
@pass_app
def uninstall_command(app: App, name: str | None) -> None:
    """Remove the service of a machine; the machine and its containers run on."""
    machine = name or app.machine
    if not session_manager().uninstall(service_label(app.home, machine)):
        raise WherryError(
            f"machine {machine!r} has no service", hint="wherry service install makes one"
        )
    click.echo(machine)


@service_command.command("restart")
@click.option("-f", "--force", is_flag=True, help="Also when that cuts off somebody's stream.")
@click.argument("name", metavar="[MACHINE]", required=False)
@pass_app
def restart_command(app: App, force: bool, name: str | None) -> None:
    """Replace the running engine by one of this version; the machine and its containers run on."""
    machine = name or app.machine
    client = app.client_of(machine)
    client.replace_engine(force=force)
    click.echo(machine)


def services(app: App) -> list[Item]:
    """What `reset` and `uninstall` remove: see `clearing.RESET_HOOKS`."""
    return [item for name in machine_names(app) if (item := service_item(app, name)) is not None]


def service_item(app: App, machine: str) -> Item | None:
    """The service of a machine; None: it has none."""
    label = service_label(app.home, machine)
    manager = session_manager()
    if not manager.installed(label):
        return None

    def remove() -> None:
        manager.uninstall(label)

    return Item(f"the service of machine {machine}", remove=remove, first=True)


def _engine_version(app: App, machine: str) -> str | None:
    """Of the engine that is recorded; nothing is started for that."""
    from wherry.osutil import is_alive
    from wherry.osutil.pulse import read_holder

    holder = read_holder(app.home.machine(machine).engine_record)
    return holder.version if holder is not None and is_alive(holder.identity) else None


def _in_words(value: object) -> str:
    if value is None:
        return "-"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
