"""The machines as the command line sees them, engines running or not; shared by `machine …`."""

from __future__ import annotations

import json
from typing import Any

from wherry.cli.app import App
from wherry.client import Client
from wherry.errors import NotFound


def machine_names(app: App) -> list[str]:
    """Sorted."""
    try:
        return sorted(entry.name for entry in app.home.machines.iterdir() if entry.is_dir())
    except FileNotFoundError:
        return []


def machine_facts(app: App, name: str) -> dict[str, Any]:
    """A machine's inspect where its engine answers, else what is on disk; starts nothing."""
    client = app.client_of(name)
    if client.running():
        facts: dict[str, Any] = client.request("GET", "/wherry/v1/machine").json()
        return facts
    try:
        stored: dict[str, Any] = json.loads(client.paths.config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored


def existing(app: App, name: str | None) -> Client:
    """The client of `name`, else of the current machine.

    Raises:
        NotFound: there is no such machine.
    """
    wanted = name or app.machine
    if wanted not in machine_names(app):
        raise NotFound(f"no machine {wanted!r}", hint="wherry machine ls lists them")
    return app.client_of(wanted)
