"""Private directories and atomic files."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from wherry.errors import StorageError
from wherry.osutil import atomic_write, fsync_directory, private_directory

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes and owners")


@posix_only
def test_a_private_directory_and_its_parents_are_for_the_user_alone(tmp_path: Path) -> None:
    made = private_directory(tmp_path / "a" / "b")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (made, made.parent)] == [0o700, 0o700]


@posix_only
def test_loose_permissions_of_our_own_directory_are_tightened(tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir(mode=0o755)
    loose.chmod(0o755)
    private_directory(loose)
    assert stat.S_IMODE(loose.stat().st_mode) == 0o700


@posix_only
def test_a_symlink_in_the_place_of_a_private_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StorageError, match="symbolic link"):
        private_directory(tmp_path / "link")


@posix_only
def test_another_users_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    stranger = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: stranger)
    with pytest.raises(StorageError, match="belongs to another user"):
        private_directory(tmp_path / "theirs")


def test_a_file_in_the_place_of_a_private_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot make the directory"):
        private_directory(tmp_path / "file")


def test_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old and longer")
    atomic_write(target, b"new")
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@posix_only
def test_atomic_write_gives_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    atomic_write(tmp_path / "secret", b"")
    atomic_write(tmp_path / "public", b"", mode=0o644)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o644


def test_a_failed_atomic_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.read_bytes() == b"old"


def test_a_directory_can_be_made_durable(tmp_path: Path) -> None:
    fsync_directory(tmp_path)
