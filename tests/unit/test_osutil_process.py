"""Detached processes and their identity."""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wherry.osutil import (
    ProcessIdentity,
    exit_status,
    identify,
    is_alive,
    kill,
    spawn_detached,
    terminate,
    wait_gone,
)
from wherry.osutil.process import parse_bsdinfo, parse_proc_stat

_STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('ready', flush=True); signal.pause()"
)


def _until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} within {seconds} s"
        time.sleep(0.01)


def _spawn(tmp_path: Path, code: str, **kwargs: object) -> ProcessIdentity:
    pid = spawn_detached([sys.executable, "-c", code], log=tmp_path / "log", **kwargs)  # type: ignore[arg-type]  # forwarded as they are
    identity = identify(pid)
    assert identity is not None
    return identity


def test_we_are_alive_and_the_same_process_each_time() -> None:
    me = identify(os.getpid())
    assert me is not None
    assert me == identify(os.getpid())
    assert is_alive(me)


def test_the_same_pid_with_another_start_time_is_another_process() -> None:
    assert not is_alive(ProcessIdentity(os.getpid(), "another time"))


def test_pids_that_nobody_can_have_are_dead() -> None:
    assert identify(0) is None
    assert identify(2**22 + 1) is None


def test_output_goes_to_the_log_and_the_exit_status_is_known(tmp_path: Path) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    pid = spawn_detached([sys.executable, "-c", code], log=tmp_path / "log")
    _until(lambda: exit_status(pid) is not None, "the process ended")
    assert exit_status(pid) == 3
    assert sorted((tmp_path / "log").read_text().split()) == ["err", "out"]


def test_directory_and_environment_are_passed_on(tmp_path: Path) -> None:
    code = "import os; print(os.getcwd(), os.environ['WHERRY_X'])"
    process = _spawn(tmp_path, code, cwd=tmp_path, env={**os.environ, "WHERRY_X": "y"})
    assert wait_gone(process, 10)
    assert (tmp_path / "log").read_text().split() == [str(tmp_path.resolve()), "y"]


@pytest.mark.skipif(sys.platform == "win32", reason="sessions are POSIX")
def test_a_detached_process_has_a_session_of_its_own(tmp_path: Path) -> None:
    if sys.platform != "win32":
        process = _spawn(tmp_path, "import time; time.sleep(60)")
        assert os.getsid(process.pid) == process.pid
        terminate(process)


def test_a_killed_child_that_nobody_has_reaped_counts_as_dead(tmp_path: Path) -> None:
    process = _spawn(tmp_path, "import time; time.sleep(60)")
    assert is_alive(process)
    kill(process)
    assert wait_gone(process, 10)
    assert exit_status(process.pid) not in (None, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_child_that_was_waited_for_leaves_no_zombie(tmp_path: Path) -> None:
    process = _spawn(tmp_path, "import time; time.sleep(60)")
    terminate(process)
    assert not Path(f"/proc/{process.pid}").exists()
    assert exit_status(process.pid) == -15


def test_terminate_of_a_dead_process_does_nothing() -> None:
    terminate(ProcessIdentity(os.getpid(), "another time"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to ignore")
def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    process = _spawn(tmp_path, _STUBBORN)
    _until(lambda: "ready" in (tmp_path / "log").read_text(), "the process is ready")
    terminate(process, grace=0.1)
    assert exit_status(process.pid) == -9


def test_a_program_that_does_not_exist_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        spawn_detached([tmp_path / "nothing"], log=tmp_path / "log")


def test_proc_stat_is_read_past_any_process_name() -> None:
    fields = b"1 " * 18 + b"4711 9 9"
    assert parse_proc_stat(b"12 (a) S (b) R " + fields) == 4711
    assert parse_proc_stat(b"12 (a) S (b) Z " + fields) is None


def test_bsdinfo_gives_the_start_time_of_what_lives() -> None:
    def info(status: int) -> bytes:
        return struct.pack("=4xI112xQQ", status, 1700000000, 42)

    assert len(info(2)) == 136
    assert parse_bsdinfo(info(2)) == "1700000000.000042"
    assert parse_bsdinfo(info(5)) is None
    assert parse_bsdinfo(b"") is None
