"""The doctor and services: the Python that one runs is there, and is this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wherry.doctor import services
from wherry.doctor.finding import Context, Finding, Status
from wherry.errors import WherryError
from wherry.paths import Home
from wherry.service.definition import service_label
from wherry.settings import Settings


class Manager:
    """Stands in for a session's manager with one service, or none."""

    def __init__(self, label: str, program: str | None) -> None:
        self._label = label
        self._program = program

    def installed(self, label: str) -> bool:
        return label == self._label

    def place(self, label: str) -> str:
        return f"/units/{label}.service"

    def program(self, label: str) -> str | None:
        assert label == self._label
        return self._program


def examined(
    monkeypatch: pytest.MonkeyPatch, home: Path, program: str | None, installed: str = "m"
) -> list[Finding]:
    context = Context(Home(home), Settings(), ("m",), environ={})
    manager = Manager(service_label(context.home, installed), program)
    monkeypatch.setattr(services, "session_manager", lambda: manager)
    monkeypatch.setattr(services, "windowless", lambda path: path)
    return list(services.services(context))


def test_a_service_of_this_python_is_fine_and_none_is_nothing_to_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (finding,) = examined(monkeypatch, tmp_path, sys.executable)
    assert (finding.status, finding.repair) == (Status.OK, None)
    assert examined(monkeypatch, tmp_path, sys.executable, installed="other") == []


@pytest.mark.parametrize(
    ("program", "status", "says"),
    [
        ("gone/python", Status.FAIL, "its Python is gone"),
        ("other", Status.WARN, "it runs "),
        (None, Status.FAIL, "cannot be told"),
    ],
)
def test_another_python_or_one_that_is_gone_is_told_and_repaired(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str | None,
    status: Status,
    says: str,
) -> None:
    (tmp_path / "other").touch()
    path = None if program is None else os.fspath(tmp_path / program)
    (finding,) = examined(monkeypatch, tmp_path, path)
    assert (finding.name, finding.status) == ("service m", status)
    assert says in finding.detail
    ran: list[list[str]] = []

    def run(command: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, len(ran) - 1, "", "wherry: no\nhint: log in")

    monkeypatch.setattr(services.subprocess, "run", run)
    assert finding.repair is not None
    assert "installed again" in finding.repair()
    assert ran == [[sys.executable, "-m", "wherry", "service", "install", "m"]]
    with pytest.raises(WherryError, match=r"^no$"):
        finding.repair()
