"""events: what happens to containers, images and volumes, as it happens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from wherry.cli import template
from wherry.cli.app import App, pass_app
from wherry.cli.containers import moment, parse_filters


@click.command("events")
@click.option("--since", default="", metavar="TIME", help="From this time on (or 10m ago).")
@click.option("--until", default="", metavar="TIME", help="Up to this time; then it ends.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="K=V", help="Only these.")
@click.option("--format", "format_", metavar="FORMAT", help="json, or a Go template.")
@pass_app
def events_command(
    app: App, since: str, until: str, filters: tuple[str, ...], format_: str | None
) -> None:
    """Show events as they happen."""
    query = {"since": moment(since), "until": moment(until), "filters": parse_filters(filters)}
    for event in app.client.lines("GET", "/events", query=query):
        click.echo(_text(event, format_))


def _text(event: Mapping[str, Any], form: str | None) -> str:
    if form is None:
        return line(event)
    if form == "json":
        return json.dumps(event, separators=(",", ":"))
    actor = event["Actor"]
    old_names = {"ID": actor["ID"], "TimeNano": event["timeNano"], "Time": event["time"]}
    return template.render(form, {**event, **old_names, "Scope": event["scope"]})


def line(event: Mapping[str, Any]) -> str:
    """As Docker's client prints it: time, type, action, id (attributes by name)."""
    from datetime import datetime  # here: `json` does without

    seconds, nanoseconds = divmod(event["timeNano"], 1_000_000_000)
    local = datetime.fromtimestamp(seconds).astimezone()
    offset = local.strftime("%z")
    zone = f"{offset[:3]}:{offset[3:]}" if int(offset) else "Z"
    attributes = event["Actor"].get("Attributes") or {}
    listed = ", ".join(f"{name}={value}" for name, value in sorted(attributes.items()))
    time = f"{local.strftime('%Y-%m-%dT%H:%M:%S')}.{nanoseconds:09d}{zone}"
    return f"{time} {event['Type']} {event['Action']} {event['Actor']['ID']} ({listed})"
