"""Who runs services in this user's session, behind one interface."""

from __future__ import annotations

import sys
from typing import Protocol

from wherry.service.definition import Service


class Manager(Protocol):
    """All methods block, and raise ServiceError when the manager is not there or refuses."""

    @property
    def name(self) -> str:
        """Who runs services, in words."""
        ...

    @property
    def holds_socket(self) -> bool:
        """Whether it listens itself, so that no engine may while the service is installed."""
        ...

    def check(self) -> None:
        """Raises ServiceError, with what to do, when services cannot be installed here."""
        ...

    def install(self, service: Service) -> list[str]:
        """Put it in place and start it; an older one is replaced. Returns hints for the user."""
        ...

    def uninstall(self, label: str) -> bool:
        """Stop and remove it. False: there is none."""
        ...

    def place(self, label: str) -> str:
        """The file or key that makes it start with the session."""
        ...

    def installed(self, label: str) -> bool:
        """Whether that is there; runs nothing."""
        ...

    def program(self, label: str) -> str | None:
        """The program that it runs. None: it is not installed, or cannot be read; runs nothing."""
        ...

    def listening(self, label: str) -> bool | None:
        """Whether the manager holds the socket now. None: it holds none."""
        ...


def session_manager() -> Manager:
    """This operating system's."""
    if sys.platform == "darwin":
        from wherry.service.launchd import Launchd

        return Launchd()
    if sys.platform == "win32":
        from wherry.service.logon import Logon

        return Logon()
    from wherry.service.systemd import Systemd

    return Systemd()
