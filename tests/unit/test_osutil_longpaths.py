"""Paths of Windows that are too long, or that QEMU cannot read; on any system."""

from __future__ import annotations

import ntpath
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import InvalidInput, StorageError
from wherry.machine.snapshot import check_snapshot_name
from wherry.osutil import longpaths, private_directory
from wherry.osutil.files import missing_drive
from wherry.osutil.longpaths import directory_text, extended_text, narrow_text, plain_text
from wherry.paths import (
    check_machine_name,
    default_home,
    example_path,
    foreign_path,
    pipe_name,
)

LONG = "C:\\" + "\\".join(["d" * 50] * 6)
"""A path of more than 300 characters."""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("C:\\a", "\\\\?\\C:\\a"),
        ("C:\\a\\..\\b/c\\.", "\\\\?\\C:\\b\\c"),
        ("\\\\server\\share\\x", "\\\\?\\UNC\\server\\share\\x"),
        ("\\\\?\\C:\\a", "\\\\?\\C:\\a"),
    ],
)
def test_the_form_without_a_limit_is_normal_already(path: str, expected: str) -> None:
    assert extended_text(path) == expected
    assert plain_text(expected) == ntpath.normpath(plain_text(path))


@given(st.text(st.sampled_from("abC1. \\/"), max_size=40))
def test_an_extended_path_is_extended_once(text: str) -> None:
    for path in (f"C:\\{text}", f"\\\\server\\share\\{text}"):
        once = extended_text(path)
        assert extended_text(once) == once
        assert extended_text(plain_text(once)) == once


def never(path: str) -> str:
    raise AssertionError(f"the short name of {path} is not needed")


def test_qemu_gets_a_short_path_of_plain_letters_as_it_is() -> None:
    assert narrow_text("\\\\?\\C:\\w\\data.qcow2", never, every_letter=False) == "C:\\w\\data.qcow2"
    assert narrow_text("C:\\Jürgen\\d", never, every_letter=True) == "C:\\Jürgen\\d"


@pytest.mark.parametrize("path", [LONG, "C:\\Users\\Jürgen\\wherry\\data.qcow2"])
def test_qemu_gets_the_short_name_of_what_it_cannot_read(path: str) -> None:
    asked: list[str] = []

    def short_name(text: str) -> str:
        asked.append(text)
        return "\\\\?\\C:\\DDDDDD~1\\E"

    assert narrow_text(path, short_name, every_letter=False) == "C:\\DDDDDD~1\\E"
    assert asked == [f"\\\\?\\{path}"]


@pytest.mark.parametrize(
    ("path", "short", "reason"),
    [
        (LONG, "", f"its path has {len(LONG)} characters"),
        (LONG, LONG, f"its path has {len(LONG)} characters"),
        ("D:\\Jürgen\\d", "", "letters beyond ASCII"),
        ("D:\\Jürgen\\d", "D:\\JÜRGEN~1\\d", "letters beyond ASCII"),
    ],
)
def test_without_a_short_name_one_line_says_what_to_do(path: str, short: str, reason: str) -> None:
    with pytest.raises(StorageError, match="its drive keeps no short names") as caught:
        narrow_text(path, lambda _: short, every_letter=False)
    assert reason in caught.value.message
    assert f"{path[:3]}wherry" in (caught.value.hint or "")


def test_programs_start_in_a_directory_that_windows_takes() -> None:
    assert directory_text("\\\\?\\C:\\w") == "C:\\w"
    assert directory_text(extended_text(LONG)) == "C:\\"


def test_long_files_are_written_and_have_a_name_for_qemu(tmp_path: Path) -> None:
    directory = longpaths.extended(tmp_path).joinpath(*["ordner-" + "x" * 43] * 6)
    directory.mkdir(parents=True)
    (directory / "f").write_text("whole")
    found = longpaths.for_programs(directory / "f")
    assert found.read_text() == "whole"
    assert sys.platform != "win32" or len(os.fspath(found)) < 260


def test_the_pipe_of_a_state_directory_is_one_in_both_spellings() -> None:
    assert pipe_name(Path("\\\\?\\C:\\w/m/default")) == pipe_name(Path("C:\\w/m/default"))


@pytest.mark.parametrize(
    ("text", "platform", "reason"),
    [
        ("/home/me", "win32", "a Linux path"),
        ("C:\\Users\\me", "win32", None),
        ("C:/Users/me", "win32", None),
        ("//server/share", "win32", None),
        ("wherry", "win32", None),
        ("C:\\Users\\me", "linux", "a Windows path"),
        ("c:/Users", "darwin", "a Windows path"),
        ("\\\\server\\share", "linux", "a Windows path"),
        ("/home/me", "linux", None),
        ("a:b", "linux", None),
    ],
)
def test_paths_of_another_kind_of_system_are_known(
    text: str, platform: str, reason: str | None
) -> None:
    assert foreign_path(text, platform) == reason
    assert foreign_path(example_path(platform), platform) is None


def test_a_state_directory_of_another_system_is_refused() -> None:
    """Else a directory of that odd name would be made where the command happens to be run."""
    other = "/home/me/wherry" if sys.platform == "win32" else "C:\\Users\\me"
    with pytest.raises(InvalidInput, match=r"WHERRY_HOME is .* path") as caught:
        default_home({"WHERRY_HOME": other})
    assert example_path(sys.platform) in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["con", "nul", "aux", "prn", "com1", "lpt9", "nul.txt", "a."])
def test_machines_and_snapshots_have_names_that_every_system_can_store(name: str) -> None:
    for check in (check_machine_name, check_snapshot_name):
        with pytest.raises(InvalidInput) as caught:
            check(name)
        assert "Windows" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["console", "com", "nul-1", "a.con", "x.y"])
def test_names_that_only_look_like_devices_are_fine(name: str) -> None:
    assert check_machine_name(name) == check_snapshot_name(name) == name


@pytest.mark.skipif(sys.platform != "win32", reason="only Windows has drives")
def test_a_drive_that_is_gone_is_named(tmp_path: Path) -> None:
    assert missing_drive(tmp_path) is None
    with pytest.raises(StorageError, match="there is no drive Q:") as caught:
        private_directory(Path("Q:\\wherry\\machines"))
    assert "WHERRY_HOME" in (caught.value.hint or "")
