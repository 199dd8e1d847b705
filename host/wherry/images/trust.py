"""Whom a registry's certificate may be signed by, besides the system's trust store: private CAs.

From the setting `registry_ca`, and from Docker's directories `certs.d/HOST[:PORT]/*.crt` (dockerd's
documentation, "Verify repository client with certificates"): the user's and, on Linux, the
machine's. A CA counts for its own host only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import InvalidInput

_SYSTEM_DIRECTORY = Path("/etc/docker/certs.d")


@dataclass(frozen=True, slots=True)
class Trust:
    """Private CAs, by host.

    Attributes:
        files: `host[:port]` to a PEM file, from the settings.
        directories: where Docker's `HOST[:PORT]` directories are looked for.
    """

    files: tuple[tuple[str, str], ...] = ()
    directories: tuple[Path, ...] = ()

    def authorities(self, netloc: str) -> tuple[Path, ...]:
        """The PEM files of CAs for `host[:port]`; () for most hosts.

        Raises:
            InvalidInput: the settings name a file that is not there.
        """
        name = netloc.rpartition("@")[2]
        found: list[Path] = []
        for host, path in self.files:
            if host == name:
                found.append(_existing(Path(path).expanduser(), host))
        if "/" in name or "\\" in name or name in ("", ".", ".."):
            return tuple(found)
        # A colon cannot stand in a Windows file name: Docker leaves it out there.
        directory = name.replace(":", "") if sys.platform == "win32" else name
        for root in self.directories:
            found += sorted((root / directory).glob("*.crt"))
        return tuple(found)


def default_trust(
    files: tuple[tuple[str, str], ...], environ: Mapping[str, str] = os.environ
) -> Trust:
    """The settings' CAs, and Docker's directories of this user and this machine."""
    try:
        home = Path.home()
    except RuntimeError:  # a service without a home directory
        home = Path("/")
    directories = [Path(environ.get("DOCKER_CONFIG") or home / ".docker") / "certs.d"]
    if sys.platform == "linux":
        directories.append(_SYSTEM_DIRECTORY)
    return Trust(files, tuple(directories))


def _existing(path: Path, host: str) -> Path:
    if not path.is_file():
        raise InvalidInput(
            f"the CA of registry {host} is not there: {path}",
            hint="correct registry_ca in config.yml",
        )
    return path
