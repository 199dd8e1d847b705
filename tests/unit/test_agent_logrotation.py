"""Logs in several files: offsets stay valid, readers get whole frames, and gaps are told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.engine.frames import FrameParser
from wherry_guest.agent.logfile import Limits, LogFile, log_end
from wherry_guest.agent.logframes import GAP, HEADER, STDOUT, gap_frame
from wherry_guest.agent.logs import Follower, Log

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the guest's files need pread")


class Reader:
    """A stream with as much credit as a test gives it, read as the host does."""

    def __init__(self, offset: int, credit: int) -> None:
        self.start = offset
        self.credit = credit
        self.ended = False
        self.parser = FrameParser()
        self.payloads: list[bytes] = []

    @property
    def position(self) -> int:
        return self.start + self.parser.consumed

    def write(self, data: bytes) -> bool:
        self.payloads += [frame.payload for frame in self.parser.feed(data)]
        self.credit -= len(data)
        return self.credit > 0

    def end(self) -> None:
        self.ended = True


def payload(number: int) -> bytes:
    return b"%06d" % number


SIZE = HEADER.size + len(payload(0))


def write(log: Log, numbers: range) -> None:
    for number in numbers:
        start = log.size
        log.file.append(STDOUT, payload(number), 1)
        log.appended(start)


def test_oldest_file_goes_and_offsets_stay(tmp_path: Path) -> None:
    file = LogFile(tmp_path, Limits(10 * SIZE, 3))
    for number in range(100):
        file.append(STDOUT, payload(number), 1)
    assert file.size == 100 * SIZE
    assert file.first == 70 * SIZE
    assert sorted(it.name for it in tmp_path.glob("log*")) == [
        f"log.{base * SIZE}" for base in (70, 80, 90)
    ]
    file.close()
    assert log_end(tmp_path) == 100 * SIZE
    again = LogFile(tmp_path, Limits(10 * SIZE, 3))
    assert (again.first, again.size) == (70 * SIZE, 100 * SIZE)
    again.close()


def test_one_file_begins_anew(tmp_path: Path) -> None:
    file = LogFile(tmp_path, Limits(10 * SIZE, 1))
    for number in range(25):
        file.append(STDOUT, payload(number), 1)
    assert (file.first, file.size) == (20 * SIZE, 25 * SIZE)
    file.close()


def test_slow_reader_finishes_his_file_and_is_told_what_he_missed(tmp_path: Path) -> None:
    log = Log(tmp_path, closed=True, limits=Limits(10 * SIZE, 2))
    log.start()
    write(log, range(5))
    reader = Reader(0, credit=1)
    follower = log.follow(reader, 0, True)
    write(log, range(5, 100))
    while reader.position < log.size:
        reader.credit = 50
        log.writable(follower)
    numbers = [int(it) for it in reader.payloads]
    # His own file to its end, then what is left of the log.
    assert numbers == [*range(10), *range(80, 100)]
    log.finish()
    assert reader.ended
    assert reader.position == 100 * SIZE


def test_reader_who_comes_late_begins_at_the_oldest(tmp_path: Path) -> None:
    log = Log(tmp_path, closed=True, limits=Limits(10 * SIZE, 2))
    log.start()
    write(log, range(45))
    reader = Reader(log.first, credit=1 << 20)
    log.follow(reader, 0, False)
    assert [int(it) for it in reader.payloads] == [*range(30, 45)]
    assert reader.ended
    log.finish()


def test_files_of_an_older_end_are_not_believed(tmp_path: Path) -> None:
    file = LogFile(tmp_path, Limits(10 * SIZE, 4))
    for number in range(35):
        file.append(STDOUT, payload(number), 1)
    file.close()
    with (tmp_path / f"log.{10 * SIZE}").open("r+b") as middle:
        middle.truncate(4 * SIZE)  # as a power cut leaves it
    again = LogFile(tmp_path, Limits(10 * SIZE, 4))
    assert (again.first, again.size) == (20 * SIZE, 35 * SIZE)
    assert not (tmp_path / "log").exists()
    again.close()


def test_host_counts_a_gap_as_what_it_stands_for() -> None:
    parser = FrameParser()
    data = gap_frame(1234)
    assert HEADER.unpack(data[: HEADER.size])[1] == GAP
    assert parser.feed(data[:20]) == []
    assert parser.consumed == 0
    assert parser.feed(data[20:]) == []
    assert parser.consumed == 1234


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_reader_gets_frames_in_order_and_knows_where_he_is(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("log")
    limits = Limits(data.draw(st.integers(1, 20)) * SIZE, data.draw(st.integers(1, 4)))
    log = Log(directory, closed=True, limits=limits)
    log.start()
    readers: list[tuple[Follower, Reader]] = []
    written = 0
    for _ in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(["write", "come", "credit", "reopen"]))
        if action == "write":
            count = data.draw(st.integers(1, 30))
            write(log, range(written, written + count))
            written += count
        elif action == "come":
            offset = max(log.first, data.draw(st.integers(0, written)) * SIZE)
            reader = Reader(offset, data.draw(st.integers(1, 400)))
            readers.append((log.follow(reader, offset, True), reader))
        elif action == "credit" and readers:
            follower, reader = data.draw(st.sampled_from(readers))
            reader.credit = data.draw(st.integers(1, 400))
            log.writable(follower)
        elif action == "reopen":
            log.finish()
            log.start()
    log.finish()
    for follower, reader in readers:
        while not reader.ended:
            reader.credit = 1000
            log.writable(follower)
        numbers = [int(it) for it in reader.payloads]
        assert numbers == sorted(set(numbers))
        assert not numbers or reader.start <= numbers[0] * SIZE
        assert reader.position % SIZE == 0
    log.abandon()
