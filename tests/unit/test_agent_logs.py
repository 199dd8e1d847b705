"""A container's log: whatever happens, every reader gets every frame once and whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from wherry_guest.agent.logfile import CHECKPOINT_STEP, LogFile
from wherry_guest.agent.logframes import (
    HEADER,
    MAX_PAYLOAD,
    STDERR,
    STDOUT,
    frame_header,
    payload_length,
)
from wherry_guest.agent.logs import Follower, Log

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the guest's files need pread")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="splice")

streams = st.sampled_from([STDOUT, STDERR])


def frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(data):
        stream, flags, reserved, length, _ = HEADER.unpack_from(data, position)
        assert (flags, reserved) == (0, 0)
        payload = data[position + HEADER.size : position + HEADER.size + length]
        assert len(payload) == length, "a torn frame"
        yield stream, payload
        position += HEADER.size + length


class FakeSink:
    """A stream with as much credit as a test gives it."""

    def __init__(self, credit: int) -> None:
        self.credit = credit
        self.received = b""
        self.ended = False

    def write(self, *pieces: bytes | memoryview) -> bool:
        assert not self.ended, "written after its end"
        assert self.credit > 0, "written while blocked"
        data = b"".join(pieces)
        self.received += data
        self.credit -= len(data)
        return self.credit > 0

    def end(self) -> None:
        assert not self.ended, "ended twice"
        self.ended = True


@given(streams, st.integers(1, MAX_PAYLOAD), st.integers(0, 2**64 - 1))
def test_header_says_the_payload_length(stream: int, length: int, time_ns: int) -> None:
    header = frame_header(stream, length, time_ns)
    assert len(header) == 16
    assert payload_length(header) == length


@given(st.binary(min_size=16, max_size=16))
def test_bytes_that_are_no_header_are_seen(data: bytes) -> None:
    length = payload_length(data)
    if length is not None:
        assert data == frame_header(data[0], length, int.from_bytes(data[8:], "big"))
        assert 0 < length <= MAX_PAYLOAD


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(streams, st.binary(min_size=1, max_size=200)), max_size=8), st.data())
def test_log_cut_anywhere_keeps_whole_frames_and_what_is_there_of_the_last(
    tmp_path_factory: pytest.TempPathFactory,
    written: list[tuple[int, bytes]],
    data: st.DataObject,
) -> None:
    directory = tmp_path_factory.mktemp("log")
    log = LogFile(directory)
    for stream, payload in written:
        log.append(stream, payload, 1)
    log.close()
    file = directory / "log"
    whole = file.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    os.truncate(file, cut)

    again = LogFile(directory)
    kept = list(frames(again.read(0, 1 << 20)))
    assert again.size == file.stat().st_size
    assert cut - again.size <= HEADER.size  # at most a header without any payload is dropped
    expected = list(frames(whole))
    assert kept[:-1] == expected[: max(0, len(kept) - 1)]
    if kept:
        stream, payload = kept[-1]
        assert stream == expected[len(kept) - 1][0]
        assert expected[len(kept) - 1][1].startswith(payload)
    again.append(STDOUT, b"goes on", 2)
    assert list(frames(again.read(0, 1 << 20))) == [*kept, (STDOUT, b"goes on")]
    again.close()


def test_opening_starts_at_the_noted_boundary(tmp_path: Path) -> None:
    log = LogFile(tmp_path)
    while log.size < 2 * CHECKPOINT_STEP:
        log.append(STDOUT, bytes(MAX_PAYLOAD), 1)
    size = log.size
    log.close()
    noted = int.from_bytes((tmp_path / "checkpoint").read_bytes(), "big")
    assert size - CHECKPOINT_STEP <= noted <= size
    with (tmp_path / "log").open("r+b") as file:
        file.write(b"damage that a scan from the beginning would meet")
    assert LogFile(tmp_path).size == size


@pytest.mark.parametrize("noted", [10**9, 5])
def test_wrong_boundary_is_not_believed(tmp_path: Path, noted: int) -> None:
    log = LogFile(tmp_path)
    log.append(STDOUT, b"first", 1)
    log.append(STDERR, b"second", 1)
    size = log.size
    log.close()
    (tmp_path / "checkpoint").write_bytes(noted.to_bytes(8, "big"))
    assert LogFile(tmp_path).size == size


@linux_only
def test_pipe_moves_into_the_log_in_frames_until_its_end(tmp_path: Path) -> None:
    log = LogFile(tmp_path)
    reader, writer = os.pipe()
    assert log.append_from(reader, STDOUT) == 0
    os.write(writer, b"x" * 65536)
    moved = [log.append_from(reader, STDOUT), log.append_from(reader, STDOUT)]
    assert sum(filter(None, moved)) == 65536
    os.write(writer, b"last")
    os.close(writer)
    assert log.append_from(reader, STDERR) == 4
    assert log.append_from(reader, STDERR) is None
    os.close(reader)
    kept = list(frames(log.read(0, 1 << 20)))
    assert kept[-1] == (STDERR, b"last")
    assert b"".join(payload for _, payload in kept[:-1]) == b"x" * 65536


@linux_only
def test_killed_between_header_and_payload_loses_and_doubles_nothing(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"abcdef")
    os.close(writer)
    log = LogFile(tmp_path)
    log.append(STDOUT, b"before", 1)
    start = log.size
    log.close()
    # The state of a process that was killed in the middle of its splice.
    with (tmp_path / "log").open("r+b") as file:
        file.seek(start)
        file.write(frame_header(STDOUT, 6, 7))
        file.flush()
        assert os.splice(reader, file.fileno(), 2, offset_dst=start + HEADER.size) == 2

    again = LogFile(tmp_path)
    assert again.append_from(reader, STDOUT) == 4
    assert again.append_from(reader, STDOUT) is None
    os.close(reader)
    assert list(frames(again.read(0, 1 << 20))) == [
        (STDOUT, b"before"),
        (STDOUT, b"ab"),
        (STDOUT, b"cdef"),
    ]


def test_follower_of_an_ended_log_gets_all_and_the_file_is_closed(tmp_path: Path) -> None:
    log = Log(tmp_path, closed=True)
    log.start()
    log.file.append(STDOUT, b"hello", 1)
    log.finish()
    sink = FakeSink(credit=10)
    follower = log.follow(sink, 0, follow=True)
    while not sink.ended:
        sink.credit = 3
        log.writable(follower)
    assert list(frames(sink.received)) == [(STDOUT, b"hello")]


class Readers(RuleBasedStateMachine):
    """One writer, readers that come, stall and go, in any order."""

    @initialize(directory=st.builds(object))
    def begin(self, directory: object) -> None:
        import tempfile

        self.directory = tempfile.TemporaryDirectory()
        self.log = Log(Path(self.directory.name), closed=True)
        self.log.start()
        self.written = b""
        self.readers: list[tuple[Follower, FakeSink, int, int | None]] = []

    @rule(stream=streams, payload=st.binary(min_size=1, max_size=500))
    def write(self, stream: int, payload: bytes) -> None:
        if self.log.closed:
            self.log.start()
        start = self.log.size
        self.log.file.append(stream, payload, 1)
        self.written += frame_header(stream, len(payload), 1) + payload
        self.log.appended(start)

    @rule(credit=st.integers(1, 2000), follow=st.booleans(), data=st.data())
    def come(self, credit: int, follow: bool, data: st.DataObject) -> None:
        offset = data.draw(st.integers(0, len(self.written)))
        sink = FakeSink(credit)
        stop_at = None if follow else len(self.written)
        follower = self.log.follow(sink, offset, follow)
        self.readers.append((follower, sink, offset, stop_at))

    @rule(credit=st.integers(1, 2000), data=st.data())
    def give_credit(self, credit: int, data: st.DataObject) -> None:
        blocked = [reader for reader in self.readers if reader[1].credit <= 0]
        if blocked:
            follower, sink, _, _ = data.draw(st.sampled_from(blocked))
            sink.credit = credit
            if not sink.ended:
                self.log.writable(follower)

    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        if self.readers:
            reader = data.draw(st.sampled_from(self.readers))
            self.log.unfollow(reader[0])
            self.readers.remove(reader)

    @rule()
    def exit(self) -> None:
        self.log.finish()

    @invariant()
    def everybody_has_a_prefix_and_who_has_credit_has_all(self) -> None:
        for _, sink, offset, stop_at in getattr(self, "readers", []):
            goal = self.written[offset:stop_at]
            if sink.ended:
                # Whoever was there at an exit has all up to it; nobody is told an end too early.
                assert self.written[offset:].startswith(sink.received)
                continue
            assert goal.startswith(sink.received)
            if sink.credit > 0:
                assert sink.received == goal

    def teardown(self) -> None:
        if hasattr(self, "readers"):
            self.log.finish()
            for follower, sink, offset, stop_at in self.readers:
                was_ended = sink.ended
                while not sink.ended:
                    sink.credit = 1000
                    self.log.writable(follower)
                if not was_ended:
                    assert sink.received == self.written[offset:stop_at]
            self.log.abandon()
            self.directory.cleanup()


TestReaders = Readers.TestCase
TestReaders.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
