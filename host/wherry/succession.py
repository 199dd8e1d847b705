"""An older engine makes room for one of this command's version; its machine and containers run on.

Only an older one: a newer one has a newer database, and speaks what older commands do. Only one
that is doing nothing for anybody: else the command says so, and works with the engine as it is.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wherry import __version__
from wherry.paths import MachinePaths

RESTART = "wherry service restart"
_PRE_RELEASE = re.compile(r"\.?(a|b|rc|dev)")
"""PEP 440: what comes before the release of that number."""


@dataclass(frozen=True, slots=True)
class Build:
    """A program's version, and since when: an engine's start, or the installation of this command
    (ns since the epoch; 0: a checkout, which says nothing)."""

    version: str
    since_ns: int = 0


def this_build() -> Build:
    """Asks the file system once; importlib.metadata takes longer to import than a command has."""
    record = Path(__file__).parents[1] / f"wherry-{__version__}.dist-info" / "RECORD"
    try:
        return Build(__version__, record.stat().st_mtime_ns)
    except OSError:
        return Build(__version__)


def is_older(engine: Build, ours: Build) -> bool:
    """By version; of the same version an engine is older that runs since before ours was installed
    (a program that was installed again, from another state of its sources)."""
    if engine.version == ours.version:
        return engine.since_ns < ours.since_ns
    return _order(engine.version) < _order(ours.version)


def older_engine(paths: MachinePaths) -> Build | None:
    """The engine that was recorded last, when it is to be replaced."""
    try:
        data: dict[str, Any] = json.loads(paths.engine_record.read_bytes())
        engine = Build(str(data["version"]), int(data["started_ns"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # there is none, or it does not say
    return engine if is_older(engine, this_build()) else None


def does_not_know(message: str, server: str) -> tuple[str, str | None] | None:
    """Message and hint when the engine lacks what was asked for; None: it is another error.

    Args:
        message: of an answer with status 400, 404, 405 or 501. server: its `Server` header.
    """
    missing = (
        message == "page not found"
        or " is not allowed on /" in message
        or (message.startswith("client version ") and " is too new" in message)
    )
    version = server.partition("/")[2] or "of an older version"
    if not missing and not (message.endswith(" is not implemented") and version != __version__):
        return None
    if _is_newer(version):
        return (
            f"the running engine is {version}, this command is {__version__}",
            "upgrade the command to the engine's version",
        )
    return (
        f"the running engine is {version} and does not know this command of {__version__}",
        f"restart it with {RESTART}; the machine and its containers run on",
    )


def notice(text: str) -> None:
    """Tell a person; scripts that read our standard error are not disturbed."""
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(sys.stderr.fileno(), f"wherry: {text}\n".encode())


def _is_newer(version: str) -> bool:
    return version[:1].isdigit() and _order(version) > _order(__version__)


def _order(version: str) -> tuple[tuple[int, ...], bool, str]:
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = match[0] if match else ""
    rest = version[len(numbers) :]
    parts = tuple(int(part) for part in numbers.split(".") if part)
    return parts, not _PRE_RELEASE.match(rest), rest
