"""`wherry service`, with a stand-in for the manager; reset and rm remove services."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry.cli.main import run
from wherry.client import Client
from wherry.osutil import is_alive, listen_unix, process, terminate
from wherry.osutil.pulse import read_holder
from wherry.paths import Home
from wherry.service.definition import Service, service_label
from wherry.service.running import ServiceError

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets and signals"),
    # A command leaves its connection to the end of its process.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = Path(__file__).parents[2]
SOURCES = os.pathsep.join(str(ROOT / name) for name in ("host", "guest-agent", "vm-images"))


class FakeManager:
    """Has the services that it was given; a socket that it would hold is bound by nobody."""

    name = "a stand-in"
    holds_socket = True

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.engine_at_install: object = None
        self.complaint: str | None = None

    def check(self) -> None:
        if self.complaint:
            raise ServiceError(self.complaint, hint="do something")

    def install(self, service: Service) -> list[str]:
        holder = read_holder(service.socket.parent / "engine.json")
        self.engine_at_install = holder and is_alive(holder.identity)
        self.services[service.label] = service
        return ["a hint"]

    def uninstall(self, label: str) -> bool:
        return self.services.pop(label, None) is not None

    def place(self, label: str) -> str:
        return f"/units/{label}"

    def installed(self, label: str) -> bool:
        return label in self.services

    def listening(self, label: str) -> bool:
        return label in self.services


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    monkeypatch.setenv("PYTHONPATH", SOURCES)
    root = Path(tempfile.mkdtemp(prefix="wh-"))
    monkeypatch.setenv("WHERRY_HOME", str(root))
    it = Home(root)
    yield it
    holder = read_holder(it.machine("default").engine_record)
    if holder is not None:
        terminate(holder.identity)
    for engine in process._children.values():
        engine.wait(20)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> FakeManager:
    it = FakeManager()
    monkeypatch.setattr("wherry.cli.service.session_manager", lambda: it)
    return it


def test_install_ends_a_running_engine_first_and_then_one_answers(
    home: Home, manager: FakeManager, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Client(home, "default")
    client.request("GET", "/_ping")
    client.close()
    before = read_holder(home.machine("default").engine_record)
    assert run(["service", "install"]) == 0
    assert manager.engine_at_install in (None, False), "two would want one socket"
    label = service_label(home, "default")
    shown = capsys.readouterr()
    assert shown.out.strip() == label
    assert "hint: a hint" in shown.err
    assert read_holder(home.machine("default").engine_record) != before
    assert run(["service", "status", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["installed"], facts["listening"]) == (True, True)
    assert facts["place"] == f"/units/{label}"
    assert facts["engine"] is not None


def test_where_nothing_can_be_installed_nothing_is_ended(
    home: Home, manager: FakeManager, capsys: pytest.CaptureFixture[str]
) -> None:
    manager.complaint = "no manager here"
    assert run(["service", "install"]) == 1
    assert "no manager here\nhint: do something" in capsys.readouterr().err
    assert not home.machines.exists()


def test_a_machine_that_is_not_there_gets_no_service(
    home: Home, manager: FakeManager, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["service", "install", "typo"]) == 1
    assert "no machine 'typo'" in capsys.readouterr().err
    assert not manager.services


def test_status_and_uninstall_of_none(
    home: Home, manager: FakeManager, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["service", "status"]) == 3
    assert "installed:  no" in capsys.readouterr().out
    assert run(["service", "uninstall"]) == 1
    assert "has no service" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["reset", "--force"], ["machine", "rm", "--force", "default"]])
def test_a_machine_takes_its_service_along(
    home: Home, manager: FakeManager, command: list[str]
) -> None:
    assert run(["service", "install"]) == 0
    assert run(command) == 0
    assert not manager.services


def test_a_service_is_removed_before_machines_are_stopped(
    home: Home, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    home.machine("default").root.mkdir(parents=True)
    manager.services[service_label(home, "default")] = None  # type: ignore[assignment]  # unused
    monkeypatch.setattr(
        "wherry.cli.reset.stop_machines",
        lambda _app, _say: order.append("stopped with service" if manager.services else "stopped"),
    )
    assert run(["uninstall", "--force"]) == 0
    assert order == ["stopped"]


def test_a_socket_without_an_engine_is_no_older_engine(home: Home, manager: FakeManager) -> None:
    paths = home.machine("default")
    paths.root.mkdir(parents=True)
    with listen_unix(paths.api_socket):
        assert run(["service", "status"]) == 3
    assert run(["service", "restart"]) == 0
    assert read_holder(paths.engine_record) is not None
