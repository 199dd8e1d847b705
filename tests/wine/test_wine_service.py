"""The service on Windows: what stands in the `Run` key starts an engine, without a console."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from wine_tier import Windows, windows_path

pytestmark = [pytest.mark.wine, pytest.mark.timeout(300)]

LOGON = """
import subprocess, sys, winreg
from wherry.service.logon import RUN_KEY
with winreg.OpenKey(winreg.HKEY_CURRENT_USER, RUN_KEY) as key:
    value, _ = winreg.QueryValueEx(key, sys.argv[1])
print(value)
subprocess.Popen(value, creationflags=subprocess.DETACHED_PROCESS)
"""
"""What Windows does at a logon."""

PING = """
import json, sys, time
from wherry.client import Client
from wherry.paths import Home
client = Client(Home.default(), "default")
until = time.monotonic() + 60
while not client.running() and time.monotonic() < until:
    time.sleep(0.1)
print(json.dumps(client.request("GET", "/wherry/v1/engine").json()))
if sys.argv[1:]:
    client.request("POST", "/wherry/v1/engine/stop")
"""


@pytest.fixture
def home() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="wh-wine-"))
    yield root
    shutil.rmtree(root, ignore_errors=True)


def test_the_run_key_starts_an_engine_that_logs(windows_python: Windows, home: Path) -> None:
    where = {"WHERRY_HOME": windows_path(home)}
    wherry = ("-m", "wherry", "service")
    assert windows_python.run(*wherry, "status", **where).status == 3
    label = windows_python.run(*wherry, "install", **where).ok()
    first = json.loads(windows_python.run("-c", PING, "stop", **where).ok())
    status = json.loads(windows_python.run(*wherry, "status", "--json", **where).ok())
    assert (status["installed"], status["listening"]) == (True, None)

    # At the next logon; no environment names the state directory.
    command = windows_python.run("-c", LOGON, label).ok()
    assert "pythonw.exe" in command
    second = json.loads(windows_python.run("-c", PING, **where).ok())
    assert second["pid"] != first["pid"]
    log = (home / "machines" / "default" / "engine.log").read_text()
    assert f"process {second['pid']}" in log

    assert windows_python.run(*wherry, "restart", **where).ok() == "default"
    third = json.loads(windows_python.run("-c", PING, "stop", **where).ok())
    assert third["pid"] != second["pid"]
    windows_python.run(*wherry, "uninstall", **where).ok()
    assert windows_python.run(*wherry, "status", **where).status == 3
