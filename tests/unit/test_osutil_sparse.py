"""Copies of big files: equal, and as empty as the original."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from wherry.errors import StorageError
from wherry.osutil import sparse
from wherry.osutil.sparse import copy_sparse, lengthen, mark_sparse

MIB = 1 << 20


def sparse_file(path: Path) -> bytes:
    content = {0: b"head", 40 * MIB: bytes(range(256)) * 8192, 63 * MIB: b"t" * MIB}
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        for position, data in content.items():
            file.seek(position)
            file.write(data)
    return path.read_bytes()


def test_a_copy_is_equal_and_has_the_holes(tmp_path: Path) -> None:
    content = sparse_file(tmp_path / "disk")
    told: list[tuple[int, int]] = []
    copy_sparse(
        tmp_path / "disk", tmp_path / "copy", lambda done, total: told.append((done, total))
    )
    assert (tmp_path / "copy").read_bytes() == content
    assert told == [] or told[-1] == (64 * MIB, 64 * MIB)
    if sys.platform == "linux":
        assert (tmp_path / "copy").stat().st_blocks * 512 < 8 * MIB
        assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600


def test_without_a_system_that_knows_holes_zeros_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "SEEK_DATA", raising=False)
    monkeypatch.setattr("wherry.osutil.sparse._cloned", lambda *_: False)
    monkeypatch.setattr("wherry.osutil.sparse._cloned_by_name", lambda *_: False)
    content = sparse_file(tmp_path / "disk")
    copy_sparse(tmp_path / "disk", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    if sys.platform == "linux":
        assert (tmp_path / "copy").stat().st_blocks * 512 < 8 * MIB


def test_an_existing_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"precious")
    with pytest.raises(StorageError, match="cannot copy"):
        copy_sparse(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"precious"


def test_what_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse_file(tmp_path / "disk")
    monkeypatch.setattr("wherry.osutil.sparse._cloned", lambda *_: False)
    monkeypatch.setattr("wherry.osutil.sparse._cloned_by_name", lambda *_: False)

    def full(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        copy_sparse(tmp_path / "disk", tmp_path / "copy", full)
    assert not (tmp_path / "copy").exists()


class FakeKernel32:
    """Records the two calls; `able`: whether the file system knows holes."""

    def __init__(self, able: bool) -> None:
        self.able = able
        self.calls: list[tuple[object, ...]] = []

    def DeviceIoControl(self, handle: ctypes.c_void_p, code: int, *rest: object) -> int:
        self.calls.append((handle.value, code, *rest[:4]))
        return int(self.able)

    def SetFileInformationByHandle(
        self, handle: ctypes.c_void_p, kind: int, end: Any, size: int
    ) -> int:
        self.calls.append((handle.value, kind, end._obj.value, size))
        return 1


@pytest.mark.parametrize("able", [True, False])
def test_windows_is_asked_for_holes_and_may_refuse(able: bool) -> None:
    kernel32 = FakeKernel32(able)
    assert sparse._allow_holes(kernel32, 7) is able
    assert sparse._set_end(kernel32, 7, 5 << 32)
    assert kernel32.calls == [(7, 0x900C4, None, 0, None, 0), (7, 6, 5 << 32, 8)]


def test_a_file_without_holes_is_as_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "mark_sparse", lambda _descriptor: False)
    content = sparse_file(tmp_path / "disk")
    copy_sparse(tmp_path / "disk", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content


def test_a_new_file_is_marked_and_lengthened_without_a_byte_written(tmp_path: Path) -> None:
    with (tmp_path / "memory").open("xb") as file:
        assert mark_sparse(file.fileno())
        lengthen(file.fileno(), 40 * MIB)
    assert (tmp_path / "memory").stat().st_size == 40 * MIB
    if sys.platform != "win32":
        assert (tmp_path / "memory").stat().st_blocks * 512 < MIB
