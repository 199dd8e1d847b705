"""`wherry`: the command group, loaded lazily; the edge where errors become messages and codes."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from wherry import __version__
from wherry.cli.app import App
from wherry.cli.lazy import LazyGroup
from wherry.errors import WherryError

_COMMANDS = {
    "attach": "wherry.cli.run",
    "commit": "wherry.cli.snapshots",
    "completion": "wherry.cli.completion",
    "cp": "wherry.cli.cp",
    "create": "wherry.cli.run",
    "diff": "wherry.cli.snapshots",
    "doctor": "wherry.cli.doctor",
    "docker-context": "wherry.cli.docker_context:docker_context_command",
    "events": "wherry.cli.events",
    "exec": "wherry.cli.run",
    "export": "wherry.cli.snapshots",
    "history": "wherry.cli.images",
    "image": "wherry.cli.image",
    "images": "wherry.cli.images",
    "import": "wherry.cli.archives",
    "info": "wherry.cli.system",
    "inspect": "wherry.cli.containers",
    "kill": "wherry.cli.containers",
    "load": "wherry.cli.archives",
    "login": "wherry.cli.logins",
    "logout": "wherry.cli.logins",
    "logs": "wherry.cli.containers",
    "machine": "wherry.cli.machine",
    "manifest": "wherry.cli.manifest",
    "pause": "wherry.cli.lives",
    "ps": "wherry.cli.ps",
    "pull": "wherry.cli.images",
    "push": "wherry.cli.push",
    "rename": "wherry.cli.containers",
    "reset": "wherry.cli.reset",
    "restart": "wherry.cli.containers",
    "rm": "wherry.cli.containers",
    "rmi": "wherry.cli.images",
    "run": "wherry.cli.run",
    "save": "wherry.cli.archives",
    "service": "wherry.cli.service",
    "start": "wherry.cli.run",
    "stats": "wherry.cli.stats",
    "stop": "wherry.cli.containers",
    "support-bundle": "wherry.cli.support_bundle:support_bundle_command",
    "system": "wherry.cli.usage",
    "tag": "wherry.cli.images",
    "top": "wherry.cli.lives",
    "uninstall": "wherry.cli.reset",
    "unpause": "wherry.cli.lives",
    "update": "wherry.cli.lives",
    "version": "wherry.cli.system",
    "volume": "wherry.cli.volume",
    "wait": "wherry.cli.containers",
}
"""Command to module: only the module of the command that is run is imported."""

_SUMMARIES = {
    "attach": "Attach to a running container's input and output",
    "commit": "Make an image of what a container changed",
    "completion": "Have your shell complete commands and flags",
    "cp": "Copy files between a container and this computer",
    "create": "Create a container without starting it",
    "diff": "Show what a container changed",
    "doctor": "Find out what is wrong, and what to do about it",
    "docker-context": "Lead Docker's own command line to a machine",
    "events": "Show what happens, as it happens",
    "exec": "Run a command in a running container",
    "export": "Write a container's files as a tar",
    "history": "Show the layers of an image",
    "image": "Manage images",
    "images": "List images",
    "import": "Make an image of the tar of a root file system",
    "info": "Show facts about the engine and the machine",
    "inspect": "Show everything about containers, images, volumes, as JSON",
    "kill": "Send a signal to containers",
    "load": "Load the images of an archive",
    "login": "Log in to a registry",
    "logout": "Forget the login of a registry",
    "logs": "Show a container's output",
    "machine": "Manage the virtual machine that runs the containers",
    "manifest": "Look at manifests in registries, and make multi-platform images",
    "pause": "Stop all processes of containers where they are",
    "ps": "List containers",
    "pull": "Fetch an image from a registry",
    "push": "Send an image to a registry",
    "rename": "Give a container another name",
    "reset": "Remove all machines, images and caches, and begin anew",
    "restart": "Stop and start containers",
    "rm": "Remove containers",
    "rmi": "Remove images",
    "run": "Create a container from an image and run a command in it",
    "save": "Write images to an archive",
    "service": "Have the engine's socket there after a reboot, and its containers",
    "start": "Start containers that exist",
    "stats": "Show what containers use",
    "stop": "Stop containers",
    "support-bundle": "Write an archive of what is needed to understand a problem",
    "system": "Show what takes disk space, and free it",
    "tag": "Give an image another name",
    "top": "Show the processes of a container",
    "uninstall": "Remove everything that Wherry has put on this computer",
    "unpause": "Let paused containers go on",
    "update": "Change the limits and the restart policy of containers",
    "version": "Show the versions of client and engine",
    "volume": "Manage volumes",
    "wait": "Wait until containers stop; print their exit codes",
}

USAGE_ERROR = 125
"""Docker's exit code for a wrong flag."""


@click.group(
    cls=LazyGroup,
    modules=_COMMANDS,
    summaries=_SUMMARIES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--machine", "-M", metavar="NAME", help="The machine to talk to.")
@click.version_option(__version__, "--version", "-v", message="Wherry version %(version)s")
@click.pass_context
def wherry(ctx: click.Context, machine: str | None) -> None:
    """Run Linux containers on macOS, Windows and Linux."""
    ctx.obj = App(machine)


def run(argv: list[str]) -> int:
    """Carry out a command line (without the program's name); the exit code. Prints its errors."""
    if "_WHERRY_COMPLETE" in os.environ:  # a shell asks for completions
        from wherry.cli import completion  # noqa: F401  it makes PowerShell known to click
    try:
        result: Any = wherry.main(args=argv, prog_name="wherry", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 0
    except click.exceptions.Abort as error:
        if error.__cause__ is None:  # at a question: its line is not ended yet
            print(file=sys.stderr)
        return 130
    except click.UsageError as error:
        error.show()
        return USAGE_ERROR
    except click.ClickException as error:
        error.show()
        return 1
    except WherryError as error:
        _print_error(error)
        if sys.platform == "win32":
            _print_rewritten(argv)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output is gone (`wherry logs … | head`): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        # What is the machine's or the registry's comes as a WherryError: this is our own output.
        print(f"wherry: {error.strerror or error}", file=sys.stderr)
        return 1
    return result if isinstance(result, int) else 0


def _print_rewritten(argv: list[str]) -> None:
    from wherry.cli.gitbash import rewritten_hint  # here: it is for errors on Windows

    if (hint := rewritten_hint(argv, os.environ)) is not None:
        print(f"hint: {hint}", file=sys.stderr)


def _print_error(error: WherryError) -> None:
    print(f"wherry: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
