"""What the command says to people on Windows who take one system for another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from wherry.cli import files, main, packing
from wherry.cli.completion import VARIABLE
from wherry.cli.copyplan import split_argument
from wherry.cli.docker_context import docker_host
from wherry.cli.gitbash import rewritten_hint
from wherry.engine.config import check_process
from wherry.engine.mounts import parse_bind, parse_mount
from wherry.errors import InvalidInput, NotImplementedYet, StorageError
from wherry.paths import MachinePaths, container_path_hint


@pytest.mark.parametrize("text", [r"Z:\x:/y", "c:/x:/y:ro", r"\\server\share:/y", "/home/me:/y"])
def test_a_directory_of_this_computer_is_refused_whatever_the_drive(text: str) -> None:
    with pytest.raises(NotImplementedYet, match="for a directory of this computer") as caught:
        parse_bind(text)
    assert repr(text) in caught.value.message
    assert "wherry cp PATH" in (caught.value.hint or "")


def test_so_is_one_of_a_mount() -> None:
    with pytest.raises(NotImplementedYet, match="for a directory of this computer") as caught:
        parse_mount({"Type": "bind", "Source": r"Z:\x", "Target": "/y"})
    assert "use a volume" in (caught.value.hint or "")


@pytest.mark.parametrize("path", [r"C:\app", "C:/Program Files/Git/app", r"\\server\share"])
def test_a_windows_path_in_a_container_is_told(path: str) -> None:
    with pytest.raises(InvalidInput, match="needs to be an absolute path") as caught:
        check_process({"WorkingDir": path})
    assert "as in /app" in (caught.value.hint or "")
    with pytest.raises(InvalidInput, match="mount path must be absolute") as caught:
        parse_mount({"Type": "volume", "Target": path})
    assert "as in /app" in (caught.value.hint or "")


def test_a_wrong_path_of_this_system_gets_no_such_hint() -> None:
    assert container_path_hint("app") is None
    assert container_path_hint("/app") is None


def test_files_of_another_kind_of_system_are_told() -> None:
    here, other = ("C:\\x", "/home/me/x") if sys.platform == "win32" else ("/x", "C:\\me\\x")
    assert "one of this computer looks like" in (files.place_hint(other) or "")
    assert files.place_hint(here) is None
    with pytest.raises(InvalidInput, match="cannot read") as caught:
        files.pieces(Path(other), "a tar")
    assert "one of this computer looks like" in (caught.value.hint or "")


def test_a_drive_is_no_container() -> None:
    assert split_argument(r"C:\x") == ("", r"C:\x")
    assert split_argument("c:/x") == ("", "c:/x")
    assert split_argument(r"box:C:\x") == ("box", r"C:\x")


@pytest.mark.parametrize("name", ["con", "NUL.tar", "a.tar.", "a.tar "])
def test_no_archive_gets_a_name_that_windows_keeps(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with (
        pytest.raises(InvalidInput, match="Windows cannot have the file") as caught,
        files.target(tmp_path / name),
    ):
        raise AssertionError("nothing is written")
    assert "redirect" in (caught.value.hint or "")
    assert not list(tmp_path.iterdir())


def test_links_that_windows_forbids_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forbidden(OSError):
        winerror = 1314

    def forbid(*_words: Any) -> None:
        raise Forbidden(22, "A required privilege is not held by the client")

    (tmp_path / "from").mkdir()
    try:
        (tmp_path / "from" / "link").symlink_to("elsewhere")
    except OSError:
        pass  # Windows lets not everybody make one
    if not (tmp_path / "from" / "link").is_symlink():  # Wine says yes and makes none
        pytest.skip("no symbolic links here")
    archive = b"".join(packing.pack(tmp_path / "from", "to"))
    monkeypatch.setattr(Path, "symlink_to", forbid)
    with pytest.raises(StorageError, match="required privilege") as caught:
        packing.unpack(iter([archive]), tmp_path, "to", "to")
    assert "developer mode" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("argument", "path"),
    [
        ("C:/Program Files/Git/data", "C:/Program Files/Git/data"),
        (r"data;C:\Program Files\Git\data", r"C:\Program Files\Git\data"),
        ("--workdir=C:/msys64/app", "C:/msys64/app"),
    ],
)
def test_what_git_bash_has_rewritten_is_told(argument: str, path: str) -> None:
    hint = rewritten_hint(["run", argument], {"MSYSTEM": "MINGW64"})
    assert repr(path) in (hint or "")
    assert "MSYS_NO_PATHCONV=1" in (hint or "")


def test_other_shells_have_rewritten_nothing() -> None:
    assert rewritten_hint(["C:/Program Files/Git/data"], {}) is None
    assert rewritten_hint(["run", "/data", "C:\\x"], {"MSYSTEM": "MINGW64"}) is None


def test_a_pipe_is_a_context_of_docker(tmp_path: Path) -> None:
    """As Docker's own documentation has it: npipe:////./pipe/NAME."""
    paths = MachinePaths(tmp_path, tmp_path, pipe=r"\\.\pipe\wherry-default-0a1b2c3d")
    assert docker_host(paths) == "npipe:////./pipe/wherry-default-0a1b2c3d"


def test_the_printed_command_is_one_for_the_shells_of_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a quote: cmd, PowerShell and Git Bash read it the same."""
    monkeypatch.delenv("WHERRY_HOME", raising=False)
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "with spaces"))
    monkeypatch.setattr("wherry.paths.pipe_name", lambda root: rf"\\.\pipe\wherry-{root.name}-0f")
    monkeypatch.setattr("wherry.cli.docker_context.sys.platform", "win32")
    monkeypatch.setattr("wherry.paths._roomy", lambda home: home)
    assert main.run(["docker-context", "default"]) == 0
    expected = "docker context create wherry --docker host=npipe:////./pipe/wherry-default-0f\n"
    assert capsys.readouterr().out == expected


def completions(
    line: str, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[list[str]]:
    """What the script gets to read: (value, help) per line."""
    monkeypatch.setenv(VARIABLE, "powershell_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_WORD", word)
    with pytest.raises(SystemExit):
        main.run([])
    return [entry.split("\t") for entry in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("line", "word", "value"),
    [
        ("wherry ru", "ru", "run"),
        ("wherry machine sta", "sta", "start"),
        ("wherry run --rm --na", "--na", "--name"),
        ("wherry ", "", "machine"),
        (r"wherry save -o C:\new\tab.tar --form", "--form", "--format"),
    ],
)
def test_powershell_completes_commands_and_flags(
    line: str,
    word: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = completions(line, word, monkeypatch, capsys)
    assert value in [entry[0] for entry in found]
    assert all(len(entry) <= 2 and entry[0].startswith(word) for entry in found)
