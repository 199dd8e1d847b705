"""The timeline of a machine's starts: phases one behind the other, failed starts, the file."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.machine.timeline import KEPT, Recorder, Start, add_start, read_starts


class Clock:
    """Both clocks of a recorder; `wait` lets them go on."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def wait(self, seconds: float) -> None:
        self.seconds += seconds

    def recorder(self) -> Recorder:
        return Recorder(lambda: self.seconds, lambda: int(self.seconds * 1e9))


def named(start: Start) -> dict[str, float]:
    return {phase.name: phase.seconds for phase in start.phases}


def test_a_phase_lasts_until_the_next_begins() -> None:
    clock = Clock()
    recorder = clock.recorder()
    recorder.begin()
    for name, seconds in (("spawned", 0.25), ("kernel", 1.5), ("init", 0.5)):
        recorder.phase(name)
        clock.wait(seconds)
    start = recorder.done()
    assert named(start) == {"prepare": 0.0, "qemu": 0.25, "kernel": 1.5, "init": 0.5}
    assert (start.kind, start.failed, start.seconds) == ("boot", None, 2.25)


def test_what_builds_the_image_is_one_phase() -> None:
    recorder = Clock().recorder()
    recorder.begin()
    for name in ("index", "download", "download", "unpack", "write", "spawned"):
        recorder.phase(name)
    assert list(named(recorder.done())) == ["prepare", "image", "qemu"]


def test_a_restore_is_a_kind_of_its_own() -> None:
    recorder = Clock().recorder()
    recorder.begin()
    recorder.phase("restore")
    assert recorder.done().kind == "restore"


def test_the_engines_start_belongs_to_the_start_that_it_was_for() -> None:
    clock = Clock()
    recorder = clock.recorder()
    clock.wait(0.5)
    recorder.engine_ready(spawned_ns=int(100e9))
    recorder.begin()
    first = recorder.done()
    recorder.begin()
    assert named(first)["engine"] == 0.5
    assert first.began_ns == int(100e9)
    assert "engine" not in named(recorder.done())


def test_a_start_long_after_the_engines_has_no_engine_phase() -> None:
    clock = Clock()
    recorder = clock.recorder()
    recorder.engine_ready(spawned_ns=int(99e9))
    clock.wait(60)
    recorder.begin()
    assert "engine" not in named(recorder.done())


def test_a_clock_that_was_set_back_gives_no_engine_phase() -> None:
    recorder = Clock().recorder()
    recorder.engine_ready(spawned_ns=int(200e9))
    recorder.begin()
    assert "engine" not in named(recorder.done())


def test_a_failed_start_is_kept_with_the_phase_it_died_in(tmp_path: Path) -> None:
    recorder = Clock().recorder()
    with pytest.raises(RuntimeError), recorder.recorded(tmp_path / "t"):
        recorder.phase("kernel")
        raise RuntimeError("no luck\nmore")
    (start,) = read_starts(tmp_path / "t")
    assert (start["failed"], start["reason"]) == ("kernel", "no luck")


def test_a_start_that_is_broken_off_is_kept(tmp_path: Path) -> None:
    recorder = Clock().recorder()
    with pytest.raises(asyncio.CancelledError), recorder.recorded(tmp_path / "t"):
        raise asyncio.CancelledError
    (start,) = read_starts(tmp_path / "t")
    assert (start["failed"], start["reason"]) == ("prepare", "it was broken off")


def test_a_start_that_cannot_be_written_down_is_no_failure(tmp_path: Path) -> None:
    with Clock().recorder().recorded(tmp_path / "no such directory" / "t"):
        pass


def test_the_file_keeps_the_last_ones(tmp_path: Path) -> None:
    for number in range(KEPT + 5):
        add_start(tmp_path / "t", Start(number, "boot", ()))
    assert [start["began_ns"] for start in read_starts(tmp_path / "t")] == list(range(5, KEPT + 5))
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


@given(st.binary(max_size=64) | st.sampled_from([b"{}", b"[1, {}]", b"null", b"[[]]"]))
def test_a_damaged_file_is_no_history(
    tmp_path_factory: pytest.TempPathFactory, text: bytes
) -> None:
    file = tmp_path_factory.mktemp("t") / "t"
    file.write_bytes(text)
    assert all(isinstance(start, dict) for start in read_starts(file))
    add_start(file, Start(7, "boot", ()))
    assert read_starts(file)[-1]["began_ns"] == 7
