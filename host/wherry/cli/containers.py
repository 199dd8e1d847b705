"""inspect, logs, stop, kill, restart, rm, rename, wait."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import click

from wherry.cli.app import App, pass_app
from wherry.cli.output import demultiplex, print_objects, signal_name, write_all
from wherry.client import EngineError
from wherry.errors import InvalidInput, NotFound, WherryError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_filters(filters: tuple[str, ...]) -> dict[str, list[str]]:
    """`K=V` flags as the API's filters object. Raises InvalidInput."""
    result: dict[str, list[str]] = {}
    for entry in filters:
        key, equals, value = entry.partition("=")
        if not equals:
            raise InvalidInput(f"bad filter {entry!r}", hint="write KEY=VALUE")
        result.setdefault(key, []).append(value)
    return result


@click.command("inspect")
@click.option("--type", "kind", type=click.Choice(["container", "image"]), help="What to look for.")
@click.option("-f", "--format", "format_", metavar="FORMAT", help="json, or a Go template.")
@click.option("-s", "--size", is_flag=True, help="What containers have written, too.")
@click.argument("names", nargs=-1, required=True)
@pass_app
def inspect_command(
    app: App, kind: str | None, format_: str | None, size: bool, names: tuple[str, ...]
) -> None:
    """Show everything about containers or images, as JSON."""
    print_objects([_find(app, name, kind, size) for name in names], format_)


def _find(app: App, name: str, kind: str | None, size: bool) -> Any:
    # A container's or volume's name is one segment of the path: `a/b` is none, nor a page.
    segment = quote(name, safe="")
    places = {
        "container": f"/containers/{segment}/json",
        "image": f"/images/{name}/json",
        "volume": f"/volumes/{segment}",
    }
    for noun, path in places.items():
        if kind not in (None, noun):
            continue
        try:
            return app.client.request("GET", path, query={"size": size}).json()
        except EngineError as error:
            if error.http_status != 404:
                raise
    raise NotFound(f"no such {kind or 'object'}: {name}")


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on with new output.")
@click.option("-t", "--timestamps", is_flag=True, help="A time before each line.")
@click.option("--details", is_flag=True, help="Labels, variables, tag as --log-opt names them.")
@click.option("-n", "--tail", default="all", metavar="N", help="Only the last N lines.")
@click.option("--since", default="", metavar="TIME", help="From this time on (or 10m ago).")
@click.option("--until", default="", metavar="TIME", help="Up to this time (or 10m ago).")
@click.argument("container")
@pass_app
def logs_command(
    app: App,
    follow: bool,
    timestamps: bool,
    details: bool,
    tail: str,
    since: str,
    until: str,
    container: str,
) -> None:
    """Show a container's output."""
    from wherry.osutil.terminal import output_as_written  # here: other commands need not pay

    facts = app.client.request("GET", f"/containers/{container}/json").json()
    query = {
        "stdout": 1,
        "stderr": 1,
        "follow": follow,
        "timestamps": timestamps,
        "details": details,
        "tail": tail,
        "since": moment(since),
        "until": moment(until),
    }
    chunks = app.client.stream("GET", f"/containers/{facts['Id']}/logs", query=query)
    with output_as_written():
        if facts["Config"]["Tty"]:
            for chunk in chunks:
                write_all(1, chunk)
        else:
            demultiplex(chunks)


def moment(text: str) -> str:
    """A duration before now as Unix seconds; anything else is left to the engine."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return text
    ago = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    return f"{time.time() - ago:.9f}"


def each(names: tuple[str, ...], action: Callable[[str], object]) -> None:
    """Apply `action` to each name and print it; go on after errors, raise the last at the end."""
    failed: WherryError | None = None
    for name in names:
        try:
            action(name)
            click.echo(name)
        except WherryError as error:
            if failed is not None:
                click.echo(f"wherry: {failed.message}", err=True)
            failed = error
    if failed is not None:
        raise failed


@click.command("stop")
@click.option("-t", "--timeout", "--time", "timeout", type=int, help="Seconds before it is killed.")
@click.option("-s", "--signal", default="", help="The signal to send first.")
@click.argument("containers", nargs=-1, required=True)
@pass_app
def stop_command(app: App, timeout: int | None, signal: str, containers: tuple[str, ...]) -> None:
    """Stop containers: their stop signal, then SIGKILL after a while."""
    query = {"t": timeout, "signal": signal_name(signal) if signal else None}
    each(
        containers,
        lambda name: app.client.request("POST", f"/containers/{name}/stop", query=query),
    )


@click.command("restart")
@click.option("-t", "--timeout", "--time", "timeout", type=int, help="Seconds before it is killed.")
@click.option("-s", "--signal", default="", help="The signal to send first.")
@click.argument("containers", nargs=-1, required=True)
@pass_app
def restart_command(
    app: App, timeout: int | None, signal: str, containers: tuple[str, ...]
) -> None:
    """Stop and start containers."""
    query = {"t": timeout, "signal": signal_name(signal) if signal else None}
    each(
        containers,
        lambda name: app.client.request("POST", f"/containers/{name}/restart", query=query),
    )


@click.command("kill")
@click.option("-s", "--signal", default="KILL", show_default=True, help="The signal to send.")
@click.argument("containers", nargs=-1, required=True)
@pass_app
def kill_command(app: App, signal: str, containers: tuple[str, ...]) -> None:
    """Send a signal to containers."""
    query = {"signal": signal_name(signal)}
    each(
        containers,
        lambda name: app.client.request("POST", f"/containers/{name}/kill", query=query),
    )


@click.command("rm")
@click.option("-f", "--force", is_flag=True, help="Kill running ones first.")
@click.option("-v", "--volumes", is_flag=True, help="Their anonymous volumes too.")
@click.argument("containers", nargs=-1, required=True)
@pass_app
def rm_command(app: App, force: bool, volumes: bool, containers: tuple[str, ...]) -> None:
    """Remove containers."""
    query = {"force": force, "v": volumes}
    each(containers, lambda name: app.client.request("DELETE", f"/containers/{name}", query=query))


@click.command("rename")
@click.argument("container")
@click.argument("name")
@pass_app
def rename_command(app: App, container: str, name: str) -> None:
    """Give CONTAINER another NAME."""
    app.client.request("POST", f"/containers/{container}/rename", query={"name": name})


@click.command("wait")
@click.argument("containers", nargs=-1, required=True)
@pass_app
def wait_command(app: App, containers: tuple[str, ...]) -> None:
    """Wait until containers stop; print their exit codes."""
    for name in containers:
        answer = b"".join(app.client.stream("POST", f"/containers/{name}/wait"))
        click.echo(json.loads(answer)["StatusCode"])
