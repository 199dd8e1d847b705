"""The data disk is trimmed piece by piece, and not longer than asked for."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_loop import FakeLoop

from wherry_guest.agent import trimming
from wherry_guest.agent.tasks import run

GIB = 1 << 30


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """What was trimmed of a disk of two and a half GiB: (start, length, smallest)."""
    ranges: list[tuple[int, int, int]] = []

    def ioctl(_fd: int, request: int, argument: bytes) -> bytes:
        assert request == trimming._FITRIM
        start, length, smallest = struct.unpack("=QQQ", argument)
        ranges.append((start, length, smallest))
        return struct.pack("=QQQ", start, 1000, smallest)

    system = SimpleNamespace(
        statvfs=lambda _path: SimpleNamespace(f_blocks=5 * GIB // 2 // 4096, f_frsize=4096),
        O_DIRECTORY=0,
        O_CLOEXEC=0,
    )
    monkeypatch.setattr(trimming, "ioctl", ioctl)
    monkeypatch.setattr(trimming, "_os", system)
    files = SimpleNamespace(open=lambda _path, _flags: 99, close=lambda _fd: None, O_RDONLY=0)
    monkeypatch.setattr(trimming, "os", files)
    return ranges


def result_of(loop: FakeLoop, tmp_path: Path, seconds: float) -> dict[str, Any]:
    done = run(trimming.trim(loop, str(tmp_path), seconds))
    loop.advance(1.0)
    return done.result()


def test_all_of_it_is_looked_at(disk: list[tuple[int, int, int]], tmp_path: Path) -> None:
    answer = result_of(FakeLoop(), tmp_path, 10.0)
    assert answer == {"bytes": 3000, "done": True}
    assert disk == [(0, GIB, 65536), (GIB, GIB, 65536), (2 * GIB, GIB, 65536)]


def test_it_ends_when_time_is_up(disk: list[tuple[int, int, int]], tmp_path: Path) -> None:
    answer = result_of(FakeLoop(), tmp_path, 0.0)
    assert answer == {"bytes": 0, "done": False}
    assert disk == []
