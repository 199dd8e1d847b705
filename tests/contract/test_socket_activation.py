"""Docker's client and a socket that nobody serves yet: the engine is started by its first call."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import new_home
from harness import Wherry
from needs import require
from waiting import eventually

from wherry.osutil import private_directory

pytestmark = pytest.mark.contract


@pytest.fixture
def activated(test_cache: Path) -> Iterator[Wherry]:
    """A state directory whose socket systemd's tool holds; no engine runs yet."""
    require("docker.io", "docker")
    tool = require("systemd", "systemd-socket-activate")
    own = Wherry(new_home(Path(tempfile.mkdtemp(prefix="wh-")), test_cache))
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
    if paths.engine_record.exists():
        own.run("machine", "rm", "--force")
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


RUN = ("run", "--rm", "localhost/busybox", "echo")

PYTHON_CLIENT = """
import docker
client = docker.from_env()
print(client.containers.run("localhost/busybox", ["echo", "python"], remove=True).decode())
client.close()
"""


def client_of(own: Wherry, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        argv,
        env=own.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer_of(client: subprocess.Popen[str]) -> str:
    """What it prints when it succeeds."""
    printed, said = client.communicate(timeout=120)
    assert client.returncode == 0, said
    return printed.strip()


@pytest.mark.timeout(300)
def test_many_first_clients_of_a_cold_socket_are_answered_whatever_the_first_does(
    activated: Wherry,
) -> None:
    """Neither an engine nor a machine runs; the first client leaves before there is one."""
    paths = activated.home.machine("default")
    first = client_of(activated, "docker", *RUN, "first")
    eventually("the engine is started for it", paths.engine_lock.exists)
    others = [client_of(activated, "docker", *RUN, str(number)) for number in range(2)]
    python = client_of(activated, sys.executable, "-c", PYTHON_CLIENT)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert [answer_of(client) for client in others] == ["0", "1"]
    assert answer_of(python) == "python"
    eventually("nothing is left of the first", lambda: activated.out("ps", "-aq") == "")
    activated.out("machine", "stop")
    again = [client_of(activated, "docker", *RUN, str(number)) for number in range(2)]
    assert answer_of(client_of(activated, "docker", "ps", "--quiet")) == ""
    assert [answer_of(client) for client in again] == ["0", "1"]


def test_docker_hears_why_an_engine_cannot_start(activated: Wherry) -> None:
    activated.home.settings_file.write_text("memroy: 5\n")
    done = activated.docker("ps")
    assert done.returncode == 1
    assert b"unknown setting 'memroy'" in done.stderr
    assert os.fsencode(activated.home.settings_file) in done.stderr
