"""Docker's client and a socket that nobody serves yet: the engine is started by its first call."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Wherry
from needs import require
from waiting import eventually

from wherry.osutil import private_directory
from wherry.paths import Home

pytestmark = pytest.mark.contract


@pytest.fixture
def activated() -> Iterator[Wherry]:
    """A state directory whose socket systemd's tool holds; no engine runs yet."""
    require("docker.io", "docker")
    tool = require("systemd", "systemd-socket-activate")
    own = Wherry(Home(Path(tempfile.mkdtemp(prefix="wh-"))))
    paths = own.home.machine("default")
    private_directory(paths.root)
    engine = [*own.argv()[:2], "wherry.engine", "--machine", "default", "--service"]
    passed = [f"--setenv={name}" for name in own.environment]
    with paths.engine_log.open("ab") as log:
        process = subprocess.Popen(
            [tool, f"--listen={paths.api_socket}", *passed, *engine],
            env=own.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    eventually("the socket is there", paths.api_socket.exists)
    yield own
    process.kill()
    process.wait()
    shutil.rmtree(own.home.root)


def test_docker_is_answered_from_cold_and_no_machine_is_started(activated: Wherry) -> None:
    paths = activated.home.machine("default")
    assert not paths.engine_record.exists()
    assert activated.docker("ps", check=True).stdout.startswith(b"CONTAINER ID")
    assert b"Server: Wherry" in activated.docker("version", check=True).stdout
    events = activated.docker("events", "--since", "0", "--until", "0s", check=True)
    assert events.stdout == b""
    assert activated.out("ps", "-q") == ""
    assert paths.engine_record.exists()
    assert not paths.qemu_record.exists()


def test_docker_hears_why_an_engine_cannot_start(activated: Wherry) -> None:
    activated.home.settings_file.write_text("memroy: 5\n")
    done = activated.docker("ps")
    assert done.returncode == 1
    assert b"unknown setting 'memroy'" in done.stderr
    assert os.fsencode(activated.home.settings_file) in done.stderr
