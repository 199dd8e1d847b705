"""The machines as the command line sees them, engines running or not; shared by `machine …`."""

from __future__ import annotations

import json
import shutil
from functools import partial
from typing import Any

from wherry.cli.app import App
from wherry.client import Client
from wherry.errors import NotFound, WherryError
from wherry.paths import MachinePaths, is_machine_name

_ENGINE_END_SECONDS = 15.0
DISK_KEPT = "disk kept"
"""The state of a machine that was removed with --keep-disk."""


def machine_names(app: App) -> list[str]:
    """Sorted; also those of which only the disk was kept."""
    try:
        entries = sorted(app.home.machines.iterdir())
    except FileNotFoundError:
        return []
    return [entry.name for entry in entries if is_machine_name(entry.name) and entry.is_dir()]


def has_configuration(app: App, name: str) -> bool:
    """Whether the machine was created, or has been started once."""
    return app.home.machine(name).config.exists()


def machine_facts(app: App, name: str) -> dict[str, Any]:
    """A machine's inspect where its engine answers, else what is on disk; starts nothing."""
    client = app.client_of(name)
    if client.running():
        facts: dict[str, Any] = client.request("GET", "/wherry/v1/machine").json()
        return facts
    try:
        stored: dict[str, Any] = json.loads(client.paths.config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"state": DISK_KEPT} if client.paths.data_disk.exists() else {}
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


def settle(client: Client, *, asked: bool = False) -> None:
    """End the machine's engine (unless that was asked for already) and wait until it is gone."""
    from wherry.osutil import lock_file

    if not asked and client.running():
        client.request("POST", "/wherry/v1/engine/stop")
    client.close()
    with lock_file(client.paths.engine_lock, timeout=_ENGINE_END_SECONDS):
        pass  # an engine holds its lock until the last moment


def remove_files(paths: MachinePaths, *, keep_disk: bool = False) -> None:
    """Remove a machine's directories. No engine may run.

    Args:
        keep_disk: all but the data disk and what is known of the containers on it.

    Raises:
        WherryError: something in them cannot be removed.
    """
    from wherry.osutil.files import patiently  # an engine that has just ended has its log open

    keep_disk = keep_disk and paths.data_disk.exists()  # it has none before its first start
    kept = {paths.data_disk.name, paths.state_db.name} if keep_disk else set()
    try:
        for directory in {paths.root, paths.sockets}:
            if not directory.exists():
                continue
            if not kept or directory != paths.root:
                patiently(partial(shutil.rmtree, directory))
                continue
            for entry in directory.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry.name not in kept:
                    patiently(entry.unlink)
    except OSError as error:
        raise WherryError(f"cannot remove {error.filename}: {error.strerror}") from error
