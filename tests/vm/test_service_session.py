"""The service under a real systemd: the socket is there, and what restarts comes back with it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Wherry
from user_session import user_session
from waiting import eventually

from wherry.client import Client
from wherry.paths import Home

pytestmark = pytest.mark.vm


@pytest.fixture
def own(test_cache: Path) -> Iterator[Wherry]:
    """Commands on a state directory of this test, with a space in its name."""
    root = Path(tempfile.mkdtemp(prefix="w s-"))
    (root / "config.yml").write_text("memory_mib: 1024\ncpus: 2\n")
    (root / "cache").symlink_to(test_cache)
    it = Wherry(Home(root))
    yield it
    it.run("machine", "rm", "--force", timeout=60)
    shutil.rmtree(root, ignore_errors=True)


def test_containers_come_back_with_the_session_and_survive_their_engine(
    own: Wherry, tmp_path: Path
) -> None:
    paths = own.home.machine("default")
    with user_session(own, tmp_path) as first:
        first.command("service", "install")
        run = ("run", "-d", "--init", "--restart", "always", "--name", "web")
        first.command(*run, "localhost/busybox", "sleep", "1000", timeout=200)
        assert first.systemctl("is-active", "wherry-default-*.service") == "active"
    assert not paths.qemu_record.exists(), "the machine was stopped in order with the session"

    with user_session(own, tmp_path) as second:
        eventually(
            "the engine starts the machine by itself",
            lambda: "starting the machine for web" in paths.engine_log.read_text(),
        )
        web = eventually("the container is back", lambda: _running(own), 120)
        own.kill_engine()
        assert _running(own) == web, "it did not notice the end of its engine"
        assert second.command("service", "restart") == "default"
        assert _running(own) == web
        second.command("service", "uninstall")
        assert second.command("inspect", "web", "--format", "{{.State.StartedAt}}") == web


def _running(own: Wherry) -> str | None:
    """When the container was started; None while it does not run."""
    client = Client(own.home, "default")
    try:
        state = client.request("GET", "/containers/web/json").json()["State"]
    finally:
        client.close()
    return str(state["StartedAt"]) if state["Status"] == "running" else None
