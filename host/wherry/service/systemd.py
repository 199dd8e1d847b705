"""systemd's user manager: two unit files, and systemctl to make it see them."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from pathlib import Path

from wherry.osutil import atomic_write
from wherry.service.definition import Service
from wherry.service.rendering import program_of_systemd, systemd_service, systemd_socket
from wherry.service.running import Run, ServiceError, must, run

_SYSTEMCTL = ("systemctl", "--user")
_LINGER = Path("/var/lib/systemd/linger")
"""Has a file for every user whose services run without a session (loginctl(1))."""

_UP = ("running", "degraded", "starting", "initializing", "maintenance")


class Systemd:
    """See `managers.Manager`."""

    name = "systemd"
    holds_socket = True

    def __init__(
        self,
        run: Run = run,
        environ: Mapping[str, str] = os.environ,
        home: Path | None = None,
        linger: Path = _LINGER,
    ) -> None:
        self._run = run
        configured = environ.get("XDG_CONFIG_HOME") or (home or Path.home()) / ".config"
        self._directory = Path(configured) / "systemd" / "user"
        self._linger = linger

    def check(self) -> None:
        state = self._run([*_SYSTEMCTL, "is-system-running"])
        if state.out not in _UP:
            raise ServiceError(
                "systemd runs no services for this user here"
                f" ({state.err or state.out or 'it does not answer'})",
                hint="log in as this user, not by su or sudo; in a container there is no systemd:"
                " there every wherry command starts the engine when it is needed",
            )

    def install(self, service: Service) -> list[str]:
        socket, unit = f"{service.label}.socket", f"{service.label}.service"
        self._write(socket, systemd_socket(service))
        self._write(unit, systemd_service(service))
        must(self._run, *_SYSTEMCTL, "daemon-reload")
        must(self._run, *_SYSTEMCTL, "enable", socket, unit)
        # An older one is stopped with its socket; the machine runs on.
        must(self._run, *_SYSTEMCTL, "stop", socket, unit)
        must(self._run, *_SYSTEMCTL, "start", socket)
        must(self._run, *_SYSTEMCTL, "start", unit)
        return self._hints()

    def uninstall(self, label: str) -> bool:
        units = [f"{label}.socket", f"{label}.service"]
        if not self.installed(label):
            return False
        up = self._up()
        if up:
            must(self._run, *_SYSTEMCTL, "disable", "--now", *units)
        else:  # no manager runs: what would start them are links
            for wants in self._directory.glob("*.wants"):
                for name in units:
                    (wants / name).unlink(missing_ok=True)
        for name in units:
            (self._directory / name).unlink(missing_ok=True)
        if up:
            must(self._run, *_SYSTEMCTL, "daemon-reload")
        return True

    def place(self, label: str) -> str:
        return os.fspath(self._directory / f"{label}.socket")

    def installed(self, label: str) -> bool:
        return any((self._directory / f"{label}.{kind}").exists() for kind in ("socket", "service"))

    def program(self, label: str) -> str | None:
        try:
            return program_of_systemd((self._directory / f"{label}.service").read_text())
        except (OSError, ValueError):
            return None

    def listening(self, label: str) -> bool:
        return self._up() and not self._run([*_SYSTEMCTL, "is-active", f"{label}.socket"]).code

    def _up(self) -> bool:
        try:
            return self._run([*_SYSTEMCTL, "is-system-running"]).out in _UP
        except ServiceError:  # there is no systemctl
            return False

    def _write(self, name: str, text: str) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            atomic_write(self._directory / name, text.encode())  # a proxy's password may be in it
        except OSError as error:
            raise ServiceError(
                f"cannot write {self._directory / name}: {error.strerror or error}"
            ) from error

    def _hints(self) -> list[str]:
        user = getpass.getuser()
        if (self._linger / user).exists():
            return []
        lasting = f"loginctl enable-linger {user}"
        return [f"it runs while you are logged in; from boot on, without a login: {lasting}"]
