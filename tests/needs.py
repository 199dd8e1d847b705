"""Programs that tests need from the distribution: `require` installs them or skips the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

INSTALL_TIMEOUT = 300.0
"""Seconds for apt-get, which may have to wait for another one's lock."""


def require(package: str, program: str) -> str:
    """The path of `program`; Debian's `package` is installed when it is missing.

    Skips the test, with the reason, where it cannot be installed: not Debian, or not root. On
    Debian as root a package that cannot be installed fails the test.
    """
    if (path := _find(program)) is not None:
        return path
    if sys.platform != "linux" or shutil.which("apt-get") is None:
        pytest.skip(f"needs {program}, and this is not Debian (package {package})")
    if os.geteuid() != 0:
        pytest.skip(f"needs {program}: apt-get install {package}")
    _install(package)
    if (path := _find(program)) is None:
        pytest.fail(f"package {package} was installed, but there is no {program}")
    return path


def _find(program: str) -> str | None:
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return shutil.which(program, path=search)


def _install(package: str) -> None:
    options = ["-o", "DPkg::Lock::Timeout=120", "-qq", "-y", "--no-install-recommends"]
    if not _apt_get(*options, "install", package).returncode:
        return
    _apt_get(*options, "update")  # the lists may be missing, or older than the mirror's packages
    result = _apt_get(*options, "install", package)
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or ["no message"]
        pytest.fail(f"apt-get install {package} failed: {lines[-1]}")


def _apt_get(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["apt-get", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT,
        check=False,
    )
