"""vhost-device-vsock, the daemon that is a vsock where the host's kernel has none.

A package of another Debian release than this host's may be: it is taken apart, not installed, and
kept with what outlives test runs. Its index must be signed by Debian; that it is the newest one
does not matter here, so a mirror's frozen copy of testing will do.
"""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from wherry_image.archive import Relation
from wherry_image.deb import data_members
from wherry_image.errors import VmImageError
from wherry_image.fetch import fetch_packages
from wherry_image.index import _Loader
from wherry_image.mirror import mirrors
from wherry_image.signature import archive_keyring

PACKAGE = "vhost-device-vsock"
RELEASE = "forky"
_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def vsock_daemon(cache: Path) -> Path:
    """The directory that has the daemon. Skips the test where it cannot be had."""
    if sys.platform != "linux":
        pytest.skip("only Linux hosts have vsocks")
    directory = cache / "tools"
    program = directory / PACKAGE
    if not program.exists():
        try:
            data = _program(cache / "packages")
        except VmImageError as error:
            pytest.skip(f"{PACKAGE} cannot be had: {error.message}")
        directory.mkdir(exist_ok=True)
        fresh = program.with_suffix(".new")
        fresh.write_bytes(data)
        fresh.chmod(0o755)
        fresh.rename(program)
    return directory


def _program(packages: Path) -> bytes:
    arch = "arm64" if platform.machine() == "aarch64" else "amd64"
    sources = mirrors(None, datetime.now(UTC))
    failure: VmImageError | None = None
    for mirror in sources:
        loader = _Loader(arch, mirror, archive_keyring(), _LONG_AGO, lambda what, done, total: None)
        try:
            package = loader.load(RELEASE).newest(Relation(PACKAGE))
            assert package is not None, f"{RELEASE} has no {PACKAGE}"
            file = fetch_packages([package], packages, lambda: sources)[PACKAGE]
        except VmImageError as error:
            failure = error
            continue
        wanted = f"/usr/bin/{PACKAGE}"
        return next(it.data for it in data_members(file.read_bytes()) if it.path == wanted)
    assert failure is not None
    raise failure
