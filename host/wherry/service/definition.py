"""What a service of one machine is, whatever starts it: names, program, environment. Values."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import InvalidInput
from wherry.paths import Home, check_machine_name, default_home

_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_KEPT = ("PYTHONPATH", "DOCKER_CONFIG", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")


@dataclass(frozen=True, slots=True)
class Service:
    """The engine of one machine, to be run by the session's own manager.

    Attributes:
        machine: its name. label: names the service; unique among the user's services.
        program: the Python that runs the engine.
        environment: what the engine needs that a session's manager does not have.
        home, socket, log: absolute paths.
    """

    machine: str
    label: str
    program: str
    environment: Mapping[str, str]
    home: Path
    socket: Path
    log: Path

    @property
    def command(self) -> list[str]:
        """The engine's command line."""
        return [self.program, "-m", "wherry.engine", "--machine", self.machine, "--service"]

    @property
    def farewell(self) -> list[str]:
        """What is run before the engine ends with its session."""
        return [self.program, "-m", "wherry.service.farewell", "--machine", self.machine]


def describe_service(
    home: Home,
    machine: str,
    *,
    program: str = sys.executable,
    environ: Mapping[str, str] = os.environ,
) -> Service:
    """The service of a machine, as this program would run it.

    Raises:
        InvalidInput: the name cannot be a machine's, or a path or variable has control characters,
            which no manager's files can hold.
    """
    paths = home.machine(check_machine_name(machine))
    environment = {"WHERRY_HOME": os.fspath(home.root), **_carried(environ)}
    for text in (program, os.fspath(paths.api_socket), *environment.values()):
        if not text.isprintable():
            raise InvalidInput(f"{text!r} cannot be part of a service: it has control characters")
    return Service(
        machine=machine,
        label=service_label(home, machine),
        program=program,
        environment=environment,
        home=home.root,
        socket=paths.api_socket,
        log=paths.engine_log,
    )


def service_label(home: Home, machine: str) -> str:
    """`wherry-NAME`; of another state directory than the usual one with a tag of its path."""
    if home.root == default_home({}):
        return f"wherry-{machine}"
    tag = hashlib.sha256(os.fsencode(home.root)).hexdigest()[:8]
    return f"wherry-{machine}-{tag}"


def _carried(environ: Mapping[str, str]) -> dict[str, str]:
    """Settings, proxies and certificates of the shell that installs the service."""
    return {
        name: value
        for name, value in sorted(environ.items())
        if value
        and name != "WHERRY_HOME"
        and (name in _KEPT or name.startswith("WHERRY_") or name.lower() in _PROXIES)
    }
