"""An older Wherry and this one, on one machine: command, engine, agent and PID 1 work together.

The older one is this repository some commits ago, under another version number.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, Wherry

from wherry import __version__
from wherry.paths import Home

pytestmark = pytest.mark.vm

DISTANCE = 40
"""Commits between the neighbours, at least: the older one stays for as many, so that what is
kept of it is used again. The newest version tag is taken where there is one."""

OLD = "0.0.9"
_SOURCES = ("host", "guest-agent", "vm-images")
_KEPT = ("packages", "probes.json")
"""What an older version may share: content by its digest. VM images and templates are not, since
it would tidy up those of the other tests."""


@pytest.fixture(scope="module")
def older_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tag = _git("describe", "--tags", "--abbrev=0", "--match", "v*").decode().strip()
    count = int(_git("rev-list", "--count", "HEAD") or 0)
    commit = tag or f"HEAD~{DISTANCE + count % DISTANCE}"
    archive = _git("archive", commit, *_SOURCES, "linuxkit.yml")
    if not archive:
        pytest.skip(f"there is no history: git has no {commit} here (a shallow clone has none)")
    directory = tmp_path_factory.mktemp("older")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(directory, filter="data")
    for package in ("host/wherry", "guest-agent/wherry_guest"):
        file = directory / package / "__init__.py"
        file.write_text(file.read_text().replace(f'"{__version__}"', f'"{OLD}"'))
    return directory


@pytest.fixture
def both(older_sources: Path, test_cache: Path) -> Iterator[tuple[Wherry, Wherry]]:
    """The commands of the older version and of this one, on one state directory."""
    root = Path(tempfile.mkdtemp(prefix="wh-"))
    (root / "config.yml").write_text("memory_mib: 512\ncpus: 2\ntemplate: false\n")
    (root / "cache").mkdir()
    for name in _KEPT:
        if (test_cache / name).exists():
            (root / "cache" / name).symlink_to(test_cache / name)
    images = test_cache / "older-vm"
    images.mkdir(exist_ok=True)
    (root / "cache" / "vm").symlink_to(images)
    path = os.pathsep.join(os.fspath(older_sources / name) for name in _SOURCES)
    home = Home(root)
    new = Wherry(home)
    yield Wherry(home, {"PYTHONPATH": path}), new
    new.run("machine", "rm", "--force", timeout=60)
    shutil.rmtree(root, ignore_errors=True)


def test_an_older_engine_agent_and_first_process_meet_this_version(
    both: tuple[Wherry, Wherry],
) -> None:
    older, new = both
    run = ("run", "-d", "--init", "--name", "web", "localhost/busybox", "sleep", "1000")
    older.run(*run, check=True, timeout=200)
    began = _started(older)

    # Our command, the older engine: what both know works, and what it lacks is said.
    assert new.out("exec", "web", "echo", "hello") == "hello"
    assert _started(new) == began
    restart = new.run("service", "restart")
    if restart.returncode:  # an engine from before it could give way
        assert b"--force" in restart.stderr
        new.run("service", "restart", "--force", check=True)

    # Our engine, the older agent (replaced in place) and the older PID 1 (kept, and told of).
    assert _engine(new)["version"] == __version__
    assert _started(new) == began, "the container has not noticed"
    guest = _api(new, "/wherry/v1/machine/guest")
    assert guest["pid1"]["version"] == OLD
    assert guest["agent"]["version"] != OLD
    assert guest["agent"]["digest"] != guest["pid1"]["digest"]
    notices = json.loads(new.out("machine", "inspect"))[0]["notices"]
    assert any("machine stop and start" in notice for notice in notices)
    assert new.out("exec", "web", "echo", "again") == "again"
    assert new.out("run", "--rm", "localhost/busybox", "echo", "new") == "new"

    # The older engine again: it takes its agent back, or says that the state is too new for it.
    _end_engine(new)
    back = older.run("exec", "web", "echo", "back")
    if back.returncode:
        assert b"use the newer Wherry" in back.stderr
    else:
        assert back.stdout == b"back\n"
        assert _started(older) == began


def _started(of: Wherry) -> str:
    state = json.loads(of.out("inspect", "web"))[0]["State"]
    assert state["Status"] == "running", state
    return str(state["StartedAt"])


def _engine(of: Wherry) -> dict[str, Any]:
    return _api(of, "/wherry/v1/engine")


def _api(of: Wherry, path: str, method: str = "GET") -> Any:
    """By this version's client: an older one has the same API."""
    code = (
        "import json, sys; from wherry.client import Client; from wherry.paths import Home;"
        " print(json.dumps(Client(Home.default(), 'default').request(*sys.argv[1:]).json()))"
    )
    done = subprocess.run(
        [*of.argv()[:1], "-c", code, method, path],
        env=of.environment,
        capture_output=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)


def _end_engine(of: Wherry) -> None:
    _api(of, "/wherry/v1/engine/stop", "POST")


def _git(*arguments: str) -> bytes:
    """Its output; empty when it fails, or there is no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    except FileNotFoundError:
        return b""
    return done.stdout if done.returncode == 0 else b""
