"""Running systemctl and launchctl: their output, and one clear line when they refuse."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wherry.errors import WherryError

_SECONDS = 120.0
"""A stop waits for the engine, and perhaps for the machine."""


class ServiceError(WherryError):
    """The session's service manager is not there, or refuses."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended; its outputs are stripped."""

    code: int
    out: str = ""
    err: str = ""


Run = Callable[[Sequence[str]], Done]


def run(command: Sequence[str]) -> Done:
    """Raises ServiceError when it is not installed, or does not end."""
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise ServiceError(f"there is no {command[0]} on this computer") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceError(f"{' '.join(command)}: {error}") from error
    return Done(done.returncode, done.stdout.strip(), done.stderr.strip())


def must(run: Run, *command: str) -> None:
    """Run it. Raises ServiceError with its last words when it fails."""
    done = run(command)
    if done.code:
        lines = (done.err or done.out).splitlines() or [f"it ended with {done.code}"]
        raise ServiceError(f"{' '.join(command)}: {lines[-1]}")
