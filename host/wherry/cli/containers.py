"""ps, inspect, logs, stop, kill, restart, rm, rename, wait."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import click

from wherry.cli.app import App, pass_app
from wherry.cli.output import demultiplex, print_objects, print_rows, signal_name, write_all
from wherry.client import EngineError
from wherry.errors import InvalidInput, NotFound, WherryError
from wherry.units import human_duration

_COLUMNS = {
    "ID": "CONTAINER ID",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "CreatedAt": "CREATED",
    "Status": "STATUS",
    "Ports": "PORTS",
    "Names": "NAMES",
}
_SHORT_ID = 12
_COMMAND_WIDTH = 20
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


@click.command("ps")
@click.option("-a", "--all", "show_all", is_flag=True, help="Stopped containers too.")
@click.option("-q", "--quiet", is_flag=True, help="Only ids.")
@click.option("-n", "--last", type=int, default=-1, help="The N newest, in any state.")
@click.option("-l", "--latest", is_flag=True, help="The newest, in any state.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="K=V", help="Only these.")
@click.option("--no-trunc", is_flag=True, help="Whole ids and commands.")
@click.option("--format", "format_", metavar="FORMAT", help="table, json, or a Go template.")
@pass_app
def ps_command(
    app: App,
    show_all: bool,
    quiet: bool,
    last: int,
    latest: bool,
    filters: tuple[str, ...],
    no_trunc: bool,
    format_: str | None,
) -> None:
    """List containers."""
    limit = 1 if latest else last
    query: dict[str, object] = {"all": show_all or limit > 0, "filters": parse_filters(filters)}
    if limit > 0:
        query["limit"] = limit
    found = app.client.request("GET", "/containers/json", query=query).json()
    rows = [_row(item, no_trunc) for item in found]
    print_rows(rows, _COLUMNS, format=format_, quiet="ID" if quiet else None)


def _row(item: Mapping[str, Any], no_trunc: bool) -> dict[str, Any]:
    command = item["Command"]
    if not no_trunc and len(command) > _COMMAND_WIDTH:
        command = command[: _COMMAND_WIDTH - 1] + "…"
    image_id = item["ImageID"].removeprefix("sha256:")
    return {
        "ID": item["Id"] if no_trunc else item["Id"][:_SHORT_ID],
        "Image": item["Image"],
        "ImageID": image_id if no_trunc else image_id[:_SHORT_ID],
        "Command": f'"{command}"',
        "CreatedAt": f"{human_duration(time.time() - item['Created'])} ago",
        "RunningFor": f"{human_duration(time.time() - item['Created'])} ago",
        "State": item["State"],
        "Status": item["Status"],
        "Ports": "",
        "Names": ",".join(name.removeprefix("/") for name in item["Names"]),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(item["Labels"].items())),
        "Networks": ",".join(item["NetworkSettings"]["Networks"]),
    }


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
@click.argument("names", nargs=-1, required=True)
@pass_app
def inspect_command(
    app: App, kind: str | None, format_: str | None, names: tuple[str, ...]
) -> None:
    """Show everything about containers or images, as JSON."""
    print_objects([_find(app, name, kind) for name in names], format_)


def _find(app: App, name: str, kind: str | None) -> Any:
    for noun in ("container", "image"):
        if kind not in (None, noun):
            continue
        try:
            # A container's name is one segment of the path: `a/b` is none, and not a page either.
            target = quote(name, safe="") if noun == "container" else name
            return app.client.request("GET", f"/{noun}s/{target}/json").json()
        except EngineError as error:
            if error.http_status != 404:
                raise
    raise NotFound(f"no such {kind or 'object'}: {name}")


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on with new output.")
@click.option("-t", "--timestamps", is_flag=True, help="A time before each line.")
@click.option("-n", "--tail", default="all", metavar="N", help="Only the last N lines.")
@click.option("--since", default="", metavar="TIME", help="From this time on (or 10m ago).")
@click.option("--until", default="", metavar="TIME", help="Up to this time (or 10m ago).")
@click.argument("container")
@pass_app
def logs_command(
    app: App, follow: bool, timestamps: bool, tail: str, since: str, until: str, container: str
) -> None:
    """Show a container's output."""
    facts = app.client.request("GET", f"/containers/{container}/json").json()
    query = {
        "stdout": 1,
        "stderr": 1,
        "follow": follow,
        "timestamps": timestamps,
        "tail": tail,
        "since": _moment(since),
        "until": _moment(until),
    }
    chunks = app.client.stream("GET", f"/containers/{facts['Id']}/logs", query=query)
    if facts["Config"]["Tty"]:
        for chunk in chunks:
            write_all(1, chunk)
    else:
        demultiplex(chunks)


def _moment(text: str) -> str:
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
@click.option("-t", "--time", "timeout", type=int, help="Seconds before it is killed.")
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
@click.option("-t", "--time", "timeout", type=int, help="Seconds before it is killed.")
@click.argument("containers", nargs=-1, required=True)
@pass_app
def restart_command(app: App, timeout: int | None, containers: tuple[str, ...]) -> None:
    """Stop and start containers."""
    each(
        containers,
        lambda name: app.client.request(
            "POST", f"/containers/{name}/restart", query={"t": timeout}
        ),
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
