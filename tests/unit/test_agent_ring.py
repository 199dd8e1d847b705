"""What an ended container, or one that never waits, does with output that finds no place."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_loop import FakeLoop
from test_agent_logs import FakeSink, frames

from wherry_guest.agent.logfile import LogFile
from wherry_guest.agent.logs import Log, Unlogged
from wherry_guest.agent.ring import RETRY, RingLog
from wherry_guest.agent.stdio import LogPump

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="splice")


class Disk:
    """Full or not: appending to log files fails while it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        for name in ("append", "append_from"):
            monkeypatch.setattr(LogFile, name, self._guarded(getattr(LogFile, name)))

    def _guarded(self, real: object) -> object:
        def method(*args: object) -> object:
            if self.full:
                raise OSError(errno.ENOSPC, "full")
            return real(*args)  # type: ignore[operator]  # a method of LogFile

        return method


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    for fd in (reader, writer):
        os.close(fd)


def make(tmp_path: Path, limit: int) -> tuple[RingLog, FakeLoop, FakeSink]:
    loop = FakeLoop()
    log = RingLog(loop, Log(tmp_path / "log", closed=True), limit)
    log.start()
    sink = FakeSink(1 << 20)
    log.follow(sink, 0, follow=True)
    return log, loop, sink


def test_what_came_while_the_disk_was_full_is_written_later_in_order(
    tmp_path: Path, disk: Disk, pipe: tuple[int, int]
) -> None:
    log, loop, sink = make(tmp_path, 100)
    reader, writer = pipe
    for text in (b"one", b"two", b"three"):
        disk.full = text == b"two"
        os.write(writer, text)
        assert log.take(reader, 1) == len(text)
    assert [payload for _, payload in frames(sink.received)] == [b"one", b"two", b"three"]
    disk.full = True
    os.write(writer, b"four")
    log.take(reader, 1)
    assert log.lost == 4
    disk.full = False
    loop.advance(RETRY)
    assert log.lost == 0
    assert [payload for _, payload in frames(sink.received)][-1] == b"four"


def test_what_does_not_fit_is_thrown_away_and_counted(
    tmp_path: Path, disk: Disk, pipe: tuple[int, int]
) -> None:
    log, loop, sink = make(tmp_path, 5)
    reader, writer = pipe
    disk.full = True
    for text in (b"12345", b"678"):
        os.write(writer, text)
        assert log.take(reader, 1) == len(text)  # the container goes on
    loop.advance(10 * RETRY)
    assert log.lost == 8
    disk.full = False
    loop.advance(RETRY)
    assert (log.lost, log.size) == (3, 16 + 5)
    log.finish()
    assert sink.ended


def test_at_the_end_what_found_no_place_is_lost(
    tmp_path: Path, disk: Disk, pipe: tuple[int, int]
) -> None:
    log, loop, _ = make(tmp_path, 100)
    disk.full = True
    os.write(pipe[1], b"last words")
    log.take(pipe[0], 1)
    log.finish()
    assert log.lost == 10
    loop.advance(10 * RETRY)
    assert log.lost == 10


def test_other_errors_are_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]
) -> None:
    log, _, _ = make(tmp_path, 100)

    def broken(*_args: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(LogFile, "append_from", broken)
    os.write(pipe[1], b"x")
    with pytest.raises(OSError, match="broken"):
        log.take(pipe[0], 1)


def test_a_reader_who_does_not_read_keeps_no_ended_container(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    loop = FakeLoop()
    log = Unlogged(loop, tmp_path / "log", 0, expected=False)
    log.start()
    sink = FakeSink(credit=1)
    log.follow(sink, 0, follow=True)
    os.write(pipe[1], b"some")
    assert log.take(pipe[0], 1) == 4 and not log.ready
    os.write(pipe[1], b"more")
    ended: list[bool] = []
    pump = LogPump(loop, log, 1, os.dup(pipe[0]), lambda: ended.append(True))
    pump.give_up()
    assert ended == [True] and pump.lost == 4
    assert [payload for _, payload in frames(sink.received)] == [b"some"]
