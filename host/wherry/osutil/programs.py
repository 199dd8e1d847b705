"""Where a program is: on PATH, or where macOS's package managers and Docker Desktop put theirs.

What launchd starts, and what a non-interactive SSH session runs, has a PATH without these.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

MACOS_PACKAGES = ("/opt/homebrew/bin", "/usr/local/bin", "/opt/local/bin")
"""Homebrew on Apple silicon, Homebrew on Intel (and Docker Desktop's links), MacPorts."""

_DOCKER_DESKTOP = "/Applications/Docker.app/Contents/Resources/bin"
_DOCKER_DESKTOP_OF_USER = ".docker/bin"


def find_program(name: str, path: str | None) -> str | None:
    """The program `name` on `path` (None: the PATH of this process), else in a usual place."""
    found = shutil.which(name, path=path)
    if found is None and sys.platform == "darwin":
        found = shutil.which(name, path=os.pathsep.join(macos_directories()))
    return found


def macos_directories() -> tuple[str, ...]:
    """Directories of programs on macOS, best first."""
    try:
        of_user = [os.fspath(Path.home() / _DOCKER_DESKTOP_OF_USER)]
    except RuntimeError:  # a service without a home directory
        of_user = []
    return (*MACOS_PACKAGES, *of_user, _DOCKER_DESKTOP)
