"""What Wherry set up outside of its state directory, for `uninstall`; and how it goes itself."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from wherry.cli.app import App
from wherry.cli.clearing import Item
from wherry.cli.docker_context import docker_host
from wherry.cli.machines import machine_names


def docker_contexts(app: App) -> list[Item]:
    """The contexts of docker's command line that lead to our machines (docker/cli,
    cli/context/store: `contexts/meta/ID/meta.json`, `contexts/tls/ID`)."""
    config = docker_config(os.environ)
    hosts = {docker_host(app.home.machine(name)) for name in machine_names(app)}
    found = []
    for file in sorted((config / "contexts" / "meta").glob("*/meta.json")):
        name, host = _context(file)
        if host in hosts:
            directories = (file.parent, config / "contexts" / "tls" / file.parent.name)
            found.append(
                Item(
                    f"docker's context {name}",
                    directories,
                    partial(_forget, config, name, directories),
                )
            )
    return found


def docker_config(environ: Mapping[str, str]) -> Path:
    configured = environ.get("DOCKER_CONFIG")
    return Path(configured) if configured else Path.home() / ".docker"


def package_removal(prefix: str, executable: str) -> str:
    """The command that removes the Python package, of an installation at `prefix`."""
    parts = Path(prefix).parts
    if "pipx" in parts:
        return "pipx uninstall wherry"
    if "uv" in parts and "tools" in parts:
        return "uv tool uninstall wherry"
    return f"{executable} -m pip uninstall wherry"


def how_to_go() -> str:
    return package_removal(sys.prefix, sys.executable)


def _context(file: Path) -> tuple[str, str]:
    """Name and host; both empty when it is not readable as docker's."""
    try:
        data = json.loads(file.read_bytes())
        return str(data["Name"]), str(data["Endpoints"]["docker"]["Host"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""


def _forget(config: Path, name: str, directories: tuple[Path, ...]) -> None:
    """Also as docker's current one, else every docker command would fail."""
    from wherry.osutil import atomic_write

    file = (config / "config.json").resolve()
    try:
        settings: dict[str, Any] = json.loads(file.read_bytes())
    except (OSError, ValueError):
        settings = {}
    if settings.get("currentContext") == name:
        del settings["currentContext"]
        atomic_write(file, json.dumps(settings, indent="\t").encode() + b"\n")
    for directory in directories:
        if directory.exists():
            shutil.rmtree(directory)
