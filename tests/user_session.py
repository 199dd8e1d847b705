"""A session of systemd's user manager, also where systemd is not the system's first process.

`systemd --user` only asks whether /run/systemd/system is there. It gets one in a mount namespace
of its own; all commands of the session are run in that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import Wherry
from needs import require
from waiting import eventually

MANAGER = Path("/lib/systemd/systemd")
_START = "mount -t tmpfs tmpfs /run/systemd && mkdir /run/systemd/system && exec {manager} --user"
_UP = ("running", "degraded")


@dataclass
class UserSession:
    """Commands in a session whose manager is process `pid`."""

    wherry: Wherry
    pid: int
    environment: dict[str, str]

    def run(self, *argv: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", "--", *argv],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def out(self, *argv: str, timeout: float = 60) -> str:
        """Standard output of a command that must succeed."""
        done = self.run(*argv, timeout=timeout)
        assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def command(self, *args: str, timeout: float = 60) -> str:
        """The same of `wherry ARGS`."""
        return self.out(*self.wherry.argv(*args), timeout=timeout)

    def systemctl(self, *args: str) -> str:
        return self.run("systemctl", "--user", *args).stdout.strip()


@contextmanager
def user_session(wherry: Wherry, directory: Path) -> Iterator[UserSession]:
    """From login to logout; `directory` is the user's home, with what is configured there.

    Skips the test where such a manager cannot run.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root on Linux")
    require("systemd", "systemctl")
    runtime = directory / "run"
    runtime.mkdir(mode=0o700)
    environment = {
        **wherry.environment,
        "HOME": os.fspath(directory),
        "XDG_RUNTIME_DIR": os.fspath(runtime),
        "SYSTEMD_LOG_TARGET": "console",
    }
    for name in ("XDG_CONFIG_HOME", "DBUS_SESSION_BUS_ADDRESS"):
        environment.pop(name, None)
    Path("/run/systemd").mkdir(exist_ok=True)
    log = directory / "systemd.log"
    with log.open("ab") as output:
        manager = subprocess.Popen(
            [
                "unshare",
                "-m",
                "--propagation",
                "private",
                "sh",
                "-c",
                _START.format(manager=MANAGER),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    session = UserSession(wherry, manager.pid, environment)
    try:
        eventually(
            "the session's manager runs, or has ended",
            lambda: manager.poll() is not None or session.systemctl("is-system-running") in _UP,
        )
        if manager.poll() is not None:
            pytest.skip(f"no systemd --user here: {log.read_text().strip()[-300:]}")
        yield session
        session.run("systemctl", "--user", "exit")
        manager.wait(90)
    finally:
        manager.kill()
        manager.wait()
        shutil.rmtree(runtime, ignore_errors=True)
