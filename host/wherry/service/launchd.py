"""launchd: a launch agent's property list, and launchctl to load it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from wherry.osutil import atomic_write
from wherry.service.definition import Service
from wherry.service.rendering import launchd_plist, program_of_plist
from wherry.service.running import Run, ServiceError, must, run


class Launchd:
    """See `managers.Manager`. Labels stand in the user's graphical session (`gui/UID`)."""

    name = "launchd"
    holds_socket = True

    def __init__(self, run: Run = run, home: Path | None = None, uid: int | None = None) -> None:
        self._run = run
        self._directory = (home or Path.home()) / "Library" / "LaunchAgents"
        self._domain = f"gui/{_uid() if uid is None else uid}"

    def check(self) -> None:
        if self._run(["launchctl", "print", self._domain]).code:
            raise ServiceError(
                "launchd has no session of this user",
                hint="log in at the screen once: launch agents belong to a graphical session",
            )

    def install(self, service: Service) -> list[str]:
        file = self._file(service.label)
        self._bootout(service.label)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            atomic_write(file, launchd_plist(service))
        except OSError as error:
            raise ServiceError(f"cannot write {file}: {error.strerror or error}") from error
        must(self._run, "launchctl", "bootstrap", self._domain, os.fspath(file))
        return []

    def uninstall(self, label: str) -> bool:
        if not self.installed(label):
            return False
        self._bootout(label)
        self._file(label).unlink()
        return True

    def place(self, label: str) -> str:
        return os.fspath(self._file(label))

    def installed(self, label: str) -> bool:
        return self._file(label).exists()

    def program(self, label: str) -> str | None:
        try:
            return program_of_plist(self._file(label).read_bytes())
        except OSError:
            return None

    def listening(self, label: str) -> bool:
        """launchd holds the socket of every agent that is loaded."""
        return not self._run(["launchctl", "print", f"{self._domain}/{label}"]).code

    def _bootout(self, label: str) -> None:
        if self.listening(label):
            must(self._run, "launchctl", "bootout", f"{self._domain}/{label}")

    def _file(self, label: str) -> Path:
        return self._directory / f"{label}.plist"


def _uid() -> int:
    if sys.platform == "win32":
        raise ServiceError("there is no launchd on Windows")
    return os.getuid()
