"""reset and uninstall: what they list, what they leave alone, what they end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry.cli.app import App
from wherry.cli.clearing import items_of_reset, remove
from wherry.cli.main import run
from wherry.cli.uninstalling import docker_contexts, package_removal
from wherry.client import Client
from wherry.osutil import identify, is_alive, spawn_detached, wait_gone
from wherry.osutil.pulse import read_holder
from wherry.paths import Home

SOURCES = os.pathsep.join(
    str(Path(__file__).parents[2] / name) for name in ("host", "guest-agent", "vm-images")
)
unix_only = pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets and signals")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A home with one of everything, and a cache that is a link to somewhere else."""
    root = Path(tempfile.mkdtemp(prefix="wr-"))
    it = Home(root / "home")
    for directory in (it.machine("m").root, it.store, it.layers, it.vm_locks, root / "shared"):
        directory.mkdir(parents=True)
    it.machine("m").data_disk.write_bytes(b"x" * 10_000)
    it.store_db.write_bytes(b"")
    it.settings_file.write_text("cpus: 1\n")
    (root / "shared" / "package").write_text("kept")
    it.packages.parent.symlink_to(root / "shared")
    monkeypatch.setenv("WHERRY_HOME", str(it.root))
    monkeypatch.setenv("DOCKER_CONFIG", str(root / "docker"))
    monkeypatch.setenv("PYTHONPATH", SOURCES)
    yield it
    shutil.rmtree(root)


def test_reset_keeps_settings_and_what_links_lead_to(home: Home) -> None:
    assert run(["reset", "--force"]) == 0
    assert sorted(path.name for path in home.root.iterdir()) == ["config.yml", "locks", "machines"]
    assert (home.root.parent / "shared" / "package").read_text() == "kept"


def test_reset_all_removes_settings_too(home: Home) -> None:
    assert run(["reset", "--all", "--force"]) == 0
    assert not home.settings_file.exists()


def test_what_is_removed_is_listed_first_and_asked_for(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path(os.devnull).open() as nothing, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", nothing)
        assert run(["reset"]) == 130
    shown = capsys.readouterr().out
    assert "machine m, its containers and volumes" in shown
    assert "only the link" in shown
    assert home.machine("m").data_disk.exists()


def test_uninstall_leaves_nothing_of_ours_and_all_that_is_not(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    (home.root / "mine.txt").write_text("not Wherry's")
    assert run(["uninstall", "--force"]) == 0
    assert [path.name for path in home.root.iterdir()] == ["mine.txt"]
    shown = capsys.readouterr().out
    assert "mine.txt" in shown
    assert "The program itself is removed by: " in shown


def test_uninstall_removes_the_directory_when_it_is_empty(home: Home) -> None:
    assert run(["uninstall", "--force"]) == 0
    assert not home.root.exists()
    assert run(["uninstall", "--force"]) == 0


def test_a_home_that_is_not_there_has_nothing_to_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WHERRY_HOME", str(tmp_path / "none"))
    assert run(["reset"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_sizes_are_those_of_the_disk(home: Home) -> None:
    disk = home.machine("m").data_disk
    with disk.open("ab") as file:
        file.truncate(1 << 32)
    machine = next(it for it in items_of_reset(home, everything=False) if "machine m" in it.what)
    assert 10_000 <= machine.bytes < 1 << 20 or sys.platform == "win32"


@unix_only
def test_engine_and_qemu_are_ended_also_when_the_engine_does_not_answer(home: Home) -> None:
    paths = home.machine("m")
    qemu = spawn_detached(
        [sys.executable, "-c", "import time; time.sleep(600)"], log=paths.qemu_log
    )
    process = identify(qemu)
    assert process is not None
    identity = {"pid": process.pid, "start_time": process.start_time}
    paths.qemu_record.write_text(json.dumps({"identity": identity}))
    paths.engine_record.write_text(
        json.dumps({"identity": identity, "started_ns": 1, "version": "1"})
    )
    assert run(["reset", "--force"]) == 0
    assert not is_alive(process)
    assert not paths.root.exists()


@unix_only
def test_an_engine_that_answers_is_asked_to_end(home: Home) -> None:
    home.machine("m").data_disk.unlink()  # it is none
    client = Client(home, "m")
    client.request("GET", "/_ping")
    holder = read_holder(client.paths.engine_record)
    client.close()
    assert holder is not None
    assert run(["uninstall", "--force"]) == 0
    assert wait_gone(holder.identity, 10)
    assert not home.root.exists()


def test_something_that_cannot_be_removed_is_named(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("wherry.cli.clearing._remove", refuse)
    assert run(["reset", "--force"]) == 1
    assert "cannot remove" in capsys.readouterr().err


def context(directory: Path, name: str, host: str) -> Path:
    meta = directory / "contexts" / "meta" / name
    meta.mkdir(parents=True)
    document = {"Name": name, "Endpoints": {"docker": {"Host": host}}}
    (meta / "meta.json").write_text(json.dumps(document))
    return meta


@unix_only
def test_only_dockers_contexts_of_our_machines_go(home: Home, tmp_path: Path) -> None:
    docker = home.root.parent / "docker"
    ours = context(docker, "wherry", f"unix://{home.machine('m').api_socket}")
    theirs = context(docker, "work", "unix:///var/run/docker.sock")
    (docker / "contexts" / "meta" / "broken").mkdir()
    (docker / "contexts" / "meta" / "broken" / "meta.json").write_text("{")
    settings = {"currentContext": "wherry", "auths": {"registry.example": {"auth": "x"}}}
    (docker / "config.json").write_text(json.dumps(settings))
    for item in docker_contexts(App(None)):
        remove(item)
    assert (ours.exists(), theirs.exists()) == (False, True)
    assert json.loads((docker / "config.json").read_text()) == {"auths": settings["auths"]}


def test_the_command_that_removes_the_program() -> None:
    for prefix, command in (
        ("/home/me/.local/share/pipx/venvs/wherry", "pipx uninstall wherry"),
        ("/home/me/.local/share/uv/tools/wherry", "uv tool uninstall wherry"),
        ("/usr", "/usr/bin/python -m pip uninstall wherry"),
    ):
        assert package_removal(prefix, "/usr/bin/python") == command


def test_help_is_shown_without_a_home() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wherry", "reset", "--help"],
        env={**os.environ, "PYTHONPATH": SOURCES},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert b"wherry doctor --fix" in done.stdout
