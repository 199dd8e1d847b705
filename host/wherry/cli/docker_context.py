"""docker-context: lead Docker's own command line to a machine."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys

import click

from wherry.cli.app import App, pass_app
from wherry.errors import WherryError
from wherry.paths import MachinePaths

_DOCKER_SECONDS = 60.0
_FIRST = "default"


@click.command("docker-context")
@click.option("--create", is_flag=True, help="Run the command: make the context, or correct it.")
@click.option("--use", is_flag=True, help="Make it, and have docker talk to it from now on.")
@click.argument("name", metavar="[MACHINE]", required=False)
@pass_app
def docker_context_command(app: App, create: bool, use: bool, name: str | None) -> None:
    """Print the command that makes a docker context for a machine."""
    machine = name or app.machine
    context, host = context_name(machine), docker_host(app.home.machine(machine))
    if not (create or use):
        command = ["docker", "context", "create", context, "--docker", f"host={host}"]
        click.echo(
            shlex.join(command) if sys.platform != "win32" else subprocess.list2cmdline(command)
        )
        return
    docker = shutil.which("docker")
    if docker is None:
        raise WherryError(
            "docker is not installed, or not on PATH", hint="wherry itself does not need it"
        )
    verb = "update" if _run(docker, "inspect", context).returncode == 0 else "create"
    _must(_run(docker, verb, context, "--docker", f"host={host}"))
    if use:
        _must(_run(docker, "use", context))
    click.echo(context)


def context_name(machine: str) -> str:
    return "wherry" if machine == _FIRST else f"wherry-{machine}"


def docker_host(paths: MachinePaths) -> str:
    """The machine's API as DOCKER_HOST has it."""
    if paths.pipe is not None:
        return "npipe://" + paths.pipe.replace("\\", "/")
    return f"unix://{paths.api_socket}"


def _run(docker: str, *words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [docker, "context", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_DOCKER_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WherryError(f"{docker} cannot be run: {error}") from error


def _must(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise WherryError(f"docker context: {lines[-1]}")
