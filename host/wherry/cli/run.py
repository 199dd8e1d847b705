"""run, create, start, attach, exec: the commands that open streams."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from wherry.cli import progress
from wherry.cli.app import App, pass_app
from wherry.cli.options import ContainerOptions, container_options, process_environment
from wherry.cli.session import Session
from wherry.client import EngineError
from wherry.errors import InvalidInput, WherryError
from wherry.hung import EngineHung

_PASS_THROUGH = {"ignore_unknown_options": False, "allow_interspersed_args": False}
_ENGINE_FAILED = 125


@click.command("run", context_settings=_PASS_THROUGH)
@click.option("-d", "--detach", is_flag=True, help="Run in the background; print the id.")
@click.option("--detach-keys", default="", metavar="KEYS", help="Keys that detach.")
@click.option("--sig-proxy/--no-sig-proxy", default=True, help="Forward signals (without -t).")
@container_options
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_app
def run_command(
    app: App, detach: bool, detach_keys: str, sig_proxy: bool, **flags: Any
) -> int | None:
    """Create a container from IMAGE and run COMMAND in it."""
    try:
        return _run(app, detach, detach_keys, sig_proxy, ContainerOptions.read(flags))
    except WherryError as error:
        if error.exit_code == 1:  # as Docker: a fault of ours must not look like the command's
            error.exit_code = _ENGINE_FAILED
        raise


def _run(
    app: App, detach: bool, detach_keys: str, sig_proxy: bool, options: ContainerOptions
) -> int | None:
    if detach and options.attach:
        raise WherryError("conflicting options: cannot specify both --attach and --detach")
    if options.tty and options.interactive and not detach:
        _must_be_terminal()
    container = _create(app, options, attach=not detach)
    if detach:
        app.client.request("POST", f"/containers/{container}/start")
        click.echo(container)
        return None
    return _foreground(app, container, options, detach_keys, sig_proxy)


def _foreground(
    app: App, container: str, options: ContainerOptions, detach_keys: str, sig_proxy: bool
) -> int:
    client = app.client
    stdin = options.interactive and options.attaches("stdin")
    # Attach and wait come before the start, so that no byte and no exit can be missed.
    stream = client.hijack(
        f"/containers/{container}/attach",
        query={
            "stream": 1,
            "stdin": stdin,
            "stdout": options.attaches("stdout"),
            "stderr": options.attaches("stderr"),
        },
    )
    condition = "removed" if options.rm else "next-exit"
    waiting = client.stream("POST", f"/containers/{container}/wait", query={"condition": condition})
    client.request("POST", f"/containers/{container}/start")
    session = Session(
        tty=options.tty,
        stdin=stdin,
        resize=_resizer(app, f"/containers/{container}/resize"),
        forward=_forwarder(app, container) if sig_proxy else None,
        detach_keys=detach_keys,
    )
    with _goes_on_without_engine(container):
        detached = session.run(*stream)
    return 0 if detached else _exit_code(waiting)


@click.command("create", context_settings=_PASS_THROUGH)
@container_options
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_app
def create_command(app: App, **flags: Any) -> None:
    """Create a container from IMAGE without starting it; print its id."""
    click.echo(_create(app, ContainerOptions.read(flags), attach=True))


def _create(app: App, options: ContainerOptions, *, attach: bool) -> str:
    """Create the container, fetching its image where needed; its id."""
    body = options.body(attach=attach)
    with _id_file(options.cidfile) as file:
        container = _posted(app, options, body)
        if file is not None:
            file.write_text(container, encoding="ascii")
    return container


@contextmanager
def _id_file(path: str | None) -> Iterator[Path | None]:
    """A new file for the id, which goes again when there is none. Raises InvalidInput."""
    if path is None:
        yield None
        return
    file = Path(path)
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        raise InvalidInput(
            f"container ID file found, make sure the other container isn't running or delete {path}"
        ) from None
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror}") from error
    try:
        yield file
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _posted(app: App, options: ContainerOptions, body: dict[str, Any]) -> str:
    progress.ensure_machine(app.client, quiet=options.quiet)
    if options.pull == "always":
        progress.pull(app, options.image, platform=options.platform, quiet=options.quiet)
    query = {"name": options.name, "platform": options.platform}
    try:
        reply = app.client.request("POST", "/containers/create", query=query, body=body)
    except EngineError as error:
        if error.http_status != 404 or options.pull != "missing":
            raise
        print(f"Unable to find image '{options.image}' locally", file=sys.stderr)
        progress.pull(app, options.image, platform=options.platform, quiet=options.quiet)
        reply = app.client.request("POST", "/containers/create", query=query, body=body)
    answer = reply.json()
    for warning in answer.get("Warnings") or ():
        print(f"wherry: warning: {warning}", file=sys.stderr)
    if answer.get("EmulatorsMissing"):
        progress.fetch_emulators(app.client, quiet=options.quiet)
    return str(answer["Id"])


@click.command("start")
@click.option("-a", "--attach", is_flag=True, help="Attach to the output; return its exit code.")
@click.option("-i", "--interactive", is_flag=True, help="Attach to the input too.")
@click.option("--detach-keys", default="", metavar="KEYS", help="Keys that detach.")
@click.argument("containers", nargs=-1, required=True)
@pass_app
def start_command(
    app: App, attach: bool, interactive: bool, detach_keys: str, containers: tuple[str, ...]
) -> int | None:
    """Start containers that exist."""
    progress.ensure_machine(app.client)
    if not (attach or interactive):
        for name in containers:
            app.client.request("POST", f"/containers/{name}/start")
            click.echo(name)
        return None
    if len(containers) > 1:
        raise WherryError("only one container can be attached to", hint="leave out -a and -i")
    return _attached(app, containers[0], interactive, detach_keys, sig_proxy=True, start=True)


@click.command("attach")
@click.option("--no-stdin", is_flag=True, help="Do not attach to the input.")
@click.option("--detach-keys", default="", metavar="KEYS", help="Keys that detach.")
@click.option("--sig-proxy/--no-sig-proxy", default=True, help="Forward signals (without a TTY).")
@click.argument("container")
@pass_app
def attach_command(
    app: App, no_stdin: bool, detach_keys: str, sig_proxy: bool, container: str
) -> int | None:
    """Attach to a running container's input and output; return its exit code."""
    state = app.client.request("GET", f"/containers/{container}/json").json()["State"]
    if not state["Running"]:
        raise WherryError(
            f"container {container} is not running", hint=f"wherry start -ai {container}"
        )
    return _attached(app, container, not no_stdin, detach_keys, sig_proxy=sig_proxy, start=False)


def _attached(
    app: App, name: str, stdin: bool, detach_keys: str, *, sig_proxy: bool, start: bool
) -> int:
    client = app.client
    facts = client.request("GET", f"/containers/{name}/json").json()
    container, config = facts["Id"], facts["Config"]
    stdin = stdin and bool(config["OpenStdin"])
    stream = client.hijack(
        f"/containers/{container}/attach",
        query={"stream": 1, "stdin": stdin, "stdout": 1, "stderr": 1},
    )
    condition = "next-exit" if start else "not-running"
    waiting = client.stream("POST", f"/containers/{container}/wait", query={"condition": condition})
    if start:
        client.request("POST", f"/containers/{container}/start")
    session = Session(
        tty=bool(config["Tty"]),
        stdin=stdin,
        resize=_resizer(app, f"/containers/{container}/resize"),
        forward=_forwarder(app, container) if sig_proxy else None,
        detach_keys=detach_keys,
    )
    with _goes_on_without_engine(container):
        detached = session.run(*stream)
    return 0 if detached else _exit_code(waiting)


@click.command("exec", context_settings=_PASS_THROUGH)
@click.option("-d", "--detach", is_flag=True, help="Run in the background.")
@click.option("-i", "--interactive", is_flag=True, help="Keep standard input open.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option("-e", "--env", multiple=True, metavar="K=V", help="Set a variable.")
@click.option("--env-file", multiple=True, metavar="FILE", help="Read variables.")
@click.option("-w", "--workdir", help="The working directory.")
@click.option("-u", "--user", help="NAME, UID, NAME:GROUP or UID:GID.")
@click.option("--privileged", is_flag=True, help="All capabilities.")
@click.option("--detach-keys", default="", metavar="KEYS", help="Keys that detach.")
@click.argument("container")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@pass_app
def exec_command(
    app: App,
    detach: bool,
    interactive: bool,
    tty: bool,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    workdir: str | None,
    user: str | None,
    privileged: bool,
    detach_keys: str,
    container: str,
    command: tuple[str, ...],
) -> int | None:
    """Run COMMAND in a running CONTAINER; return its exit code."""
    if tty and interactive and not detach:
        _must_be_terminal()
    client = app.client
    config = {
        "Cmd": list(command),
        "Tty": tty,
        "AttachStdin": interactive and not detach,
        "AttachStdout": not detach,
        "AttachStderr": not detach,
        "Env": process_environment(env, env_file),
        "WorkingDir": workdir or "",
        "User": user or "",
        "Privileged": privileged,
        "DetachKeys": detach_keys,
    }
    reply = client.request("POST", f"/containers/{container}/exec", body=config)
    exec_id = reply.json()["Id"]
    options = {"Detach": detach, "Tty": tty}
    if detach:
        client.request("POST", f"/exec/{exec_id}/start", body=options)
        return None
    stream = client.hijack(f"/exec/{exec_id}/start", body=options)
    session = Session(
        tty=tty,
        stdin=interactive,
        resize=_resizer(app, f"/exec/{exec_id}/resize"),
        detach_keys=detach_keys,
    )
    if session.run(*stream):
        return 0
    ended = client.request("GET", f"/exec/{exec_id}/json").json()
    _show_hint(ended)
    return int(ended["ExitCode"] or 0)


@contextmanager
def _goes_on_without_engine(container: str) -> Iterator[None]:
    """Its output and its exit are not lost with an engine that hung."""
    try:
        yield
    except EngineHung as error:
        short = container[:12]
        raise EngineHung(
            f"{error.message}; container {short} runs on",
            hint=f"wherry attach {short} goes on, wherry logs {short} has its output",
        ) from error


def _must_be_terminal() -> None:
    """Raises WherryError when standard input is none; Git Bash's window gives programs a pipe."""
    if not sys.stdin.isatty():
        other = ", or begin with: winpty wherry" if "MSYSTEM" in os.environ else ""
        raise WherryError("the input device is not a TTY", hint=f"leave out -t{other}")


def _resizer(app: App, path: str) -> Callable[[int, int], None]:
    def resize(rows: int, columns: int) -> None:
        if rows and columns:
            try:
                app.client.request("POST", path, query={"h": rows, "w": columns})
            except WherryError:
                pass  # it, or the engine, ended meanwhile: a size is of no use

    return resize


def _forwarder(app: App, container: str) -> Callable[[str], None]:
    """Signals come at any moment, so each goes out on a connection of its own."""

    def forward(name: str) -> None:
        try:
            other = app.client_of(app.machine)
            other.request("POST", f"/containers/{container}/kill", query={"signal": name})
        except WherryError:
            pass  # it ended meanwhile

    return forward


def _exit_code(waiting: Iterator[bytes]) -> int:
    answer = json.loads(b"".join(waiting))
    if error := answer.get("Error"):
        print(f"wherry: {error['Message']}", file=sys.stderr)
    _show_hint(answer)
    return int(answer["StatusCode"])


def _show_hint(answer: Mapping[str, Any]) -> None:
    """What the engine has to say of an exit code: an emulator may be to blame."""
    if hint := answer.get("Hint"):
        print(f"wherry: {hint}", file=sys.stderr)
