"""The command line's side of machines: flags, config.yml, files, docker's contexts."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from wherry.cli.docker_context import context_name, docker_host
from wherry.cli.machine_options import machine_values
from wherry.cli.machine_set import with_setting, write_setting
from wherry.cli.machines import machine_names, remove_files
from wherry.errors import InvalidInput
from wherry.paths import Home, MachinePaths, check_machine_name, machine_of_directory

NOTHING = dict.fromkeys(
    ("cpus", "memory", "disk", "arch", "accel", "cpu", "link", "kernel", "modules", "config")
)


def values(**flags: object) -> dict[str, Any]:
    return machine_values({**NOTHING, **flags})


def test_flags_are_fields_of_a_machine() -> None:
    given = values(cpus=3, memory="1.5g", disk="2t", arch="aarch64", accel="tcg", link="vsock")
    assert given == {
        "cpus": 3,
        "memory_mib": 1536,
        "disk_gib": 2048,
        "arch": "arm64",
        "accel": "tcg",
        "link": "vsock",
    }
    assert values() == {}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"memory": "2048"}, "no unit"),
        ({"memory": "lots"}, "not a size"),
        ({"memory": "1000k"}, "no whole number of MiB"),
        ({"disk": "1500m"}, "no whole number of GiB"),
        ({"kernel": "6.1", "config": "a.yml"}, "exclude each other"),
        ({"config": "a.txt"}, "not a linuxkit.yml"),
        ({"modules": "dir"}, "needs --kernel"),
    ],
)
def test_wrong_flags_are_refused_at_once(flags: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        values(**flags)


def test_paths_are_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bzImage").write_bytes(b"")
    assert values(kernel="6.1") == {"kernel": "6.1"}
    assert values(kernel="bzImage", modules="mods") == {
        "kernel": str(tmp_path / "bzImage"),
        "modules": str(tmp_path / "mods"),
    }
    for flags in ({"kernel": "my.yml"}, {"config": "my.yml"}):
        assert values(**flags) == {"kernel": str(tmp_path / "my.yml")}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", 'default_machine: "no"\n'),
        ("cpus: 2  # two", 'cpus: 2  # two\ndefault_machine: "no"\n'),
        ('"default_machine": x', 'default_machine: "no"'),
        ("# mine\ndefault_machine: x\ncpus: 2\n", '# mine\ndefault_machine: "no"\ncpus: 2\n'),
    ],
)
def test_a_setting_is_changed_and_the_rest_stays(before: str, after: str) -> None:
    assert with_setting(before, "default_machine", "no") == after


def test_a_settings_file_is_made_and_edited(tmp_path: Path) -> None:
    file = tmp_path / "home" / "config.yml"
    write_setting(file, "default_machine", "on")
    write_setting(file, "default_machine", "dev")
    assert yaml.safe_load(file.read_text()) == {"default_machine": "dev"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{cpus: 2}", "not YAML|unusual"),
        ("- a\n", "not YAML|unusual"),
        ("a: [", "not YAML"),
        ("mirrors: |\n  text\n\nx:\n default_machine: y\ndefault_machine:\n  z\n", "YAML|unusual"),
    ],
)
def test_a_settings_file_that_cannot_be_edited_is_left_alone(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "config.yml"
    file.write_text(text)
    with pytest.raises(InvalidInput, match=message):
        write_setting(file, "default_machine", "dev")
    assert file.read_text() == text


def test_a_kept_disk_keeps_what_is_known_of_its_containers(tmp_path: Path) -> None:
    paths = Home(tmp_path).machine("m")
    paths.root.mkdir(parents=True)
    for name in ("data.qcow2", "state.db", "machine.json", "machine-id", "engine.log"):
        (paths.root / name).write_text(name)
    (paths.root / "snapshots").mkdir()
    (paths.root / "snapshots" / "one").write_text("1")
    remove_files(paths, keep_disk=True)
    assert sorted(path.name for path in paths.root.iterdir()) == ["data.qcow2", "state.db"]
    remove_files(paths)
    assert not paths.root.exists()


def test_a_machine_that_never_had_a_disk_leaves_nothing_when_it_is_to_be_kept(
    tmp_path: Path,
) -> None:
    paths = Home(tmp_path).machine("m")
    paths.root.mkdir(parents=True)
    for name in ("state.db", "machine.json"):
        (paths.root / name).write_text(name)
    remove_files(paths, keep_disk=True)
    assert not paths.root.exists()


def test_directories_that_are_being_made_are_no_machines(tmp_path: Path) -> None:
    class App:
        home = Home(tmp_path)

    for name in ("b", "a", ".c.new", "Wrong Name"):
        (tmp_path / "machines" / name).mkdir(parents=True)
    assert machine_names(App()) == ["a", "b"]  # type: ignore[arg-type]  # all that is asked of it
    assert machine_of_directory(Path("machines/.c.new")) == "c"
    assert machine_of_directory(Path("machines/c")) == "c"
    assert machine_of_directory(Path("machines/Wrong Name")) is None


@pytest.mark.parametrize("name", ["", "-x", "../up", "UPPER", "a" * 40, "a/b", "a\n", ".new"])
def test_names_that_could_leave_the_directory_never_become_paths(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput):
        check_machine_name(name)
    with pytest.raises(InvalidInput):
        Home(tmp_path).machine(name)


def test_a_context_is_named_after_its_machine() -> None:
    assert (context_name("default"), context_name("dev")) == ("wherry", "wherry-dev")


def test_docker_is_told_the_socket_or_the_pipe(tmp_path: Path) -> None:
    paths = MachinePaths(root=tmp_path, sockets=tmp_path)
    assert docker_host(paths) == f"unix://{tmp_path / 'api.sock'}"
    pipe = MachinePaths(root=tmp_path, sockets=tmp_path, pipe=r"\\.\pipe\wherry-m-12")
    assert docker_host(pipe) == "npipe:////./pipe/wherry-m-12"


@pytest.mark.skipif(sys.platform == "win32", reason="a home of one's own has sockets here")
def test_a_machine_whose_state_is_a_newer_versions_can_be_removed() -> None:
    from harness import Wherry  # its terminals are not Windows's

    with tempfile.TemporaryDirectory(prefix="wm-") as root:
        wherry = Wherry(Home(Path(root)))
        state = wherry.home.machine("m").state_db
        state.parent.mkdir(parents=True)
        with contextlib.closing(sqlite3.connect(state)) as connection:
            connection.execute("PRAGMA user_version = 999")
        refused = wherry.run("machine", "rm", "m", input=b"y\n")
        assert refused.returncode == 1
        assert b"of version 999" in refused.stderr
        assert wherry.out("machine", "rm", "-f", "m") == "m"
        assert not state.parent.exists()
