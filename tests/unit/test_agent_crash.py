"""An emulator that waits to die of its program's signal is told from all that merely wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from wherry_guest.agent.crash import CrashWatch, dying_of
from wherry_guest.loop import Loop

STATUS = """\
Name:\tsh
State:\tS (sleeping)
SigQ:\t0/3714
SigPnd:\t0000000000000000
ShdPnd:\t0000000000000000
SigBlk:\t{blocked:016x}
SigIgn:\t{ignored:016x}
SigCgt:\t{handled:016x}
CapInh:\t0000000000000000
"""
ALL = (1 << 64) - 1
SIGKILL, SIGSEGV, SIGSTOP, SIGTERM = 9, 11, 19, 15


def all_but(*signals: int) -> int:
    mask = ALL
    for number in (
        *signals,
        SIGKILL,
        SIGSTOP,
        32,
        33,
    ):  # those that nobody can block, and the libc's
        mask &= ~(1 << (number - 1))
    return mask


def thread(
    process: Path,
    name: str,
    call: str = "130 0x7ffe 0x8",
    blocked: int = 0,
    handled: int = 0,
    ignored: int = 0,
) -> Path:
    directory = process / "task" / name
    directory.mkdir(parents=True)
    (directory / "syscall").write_text(f"{call} 0x7ffee2062418 0x7f3a82af1fde\n")
    text = STATUS.format(blocked=blocked, handled=handled, ignored=ignored)
    (directory / "status").write_text(text)
    return process


def test_what_qemu_leaves_behind_is_recognised(tmp_path: Path) -> None:
    """The figures of an aarch64 shell that died of SIGSEGV."""
    process = thread(tmp_path, "154", blocked=0xFFFFFFFE7FFBFAFF, ignored=0x4, handled=0x7000100DA)
    assert dying_of(process, "x86_64") == SIGSEGV


def test_a_crash_in_any_thread_counts(tmp_path: Path) -> None:
    thread(tmp_path, "7", call="202 0x1")
    thread(tmp_path, "8", blocked=all_but(6))
    assert dying_of(tmp_path, "x86_64") == 6


def test_on_arm64_the_call_has_another_number(tmp_path: Path) -> None:
    thread(tmp_path, "7", call="133 0x7ffe 0x8", blocked=all_but(SIGSEGV))
    assert dying_of(tmp_path, "aarch64") == SIGSEGV
    assert dying_of(tmp_path, "x86_64") is None


@pytest.mark.parametrize(
    ("call", "blocked", "handled", "ignored"),
    [
        ("0 0x3", all_but(SIGSEGV), 0, 0),  # reads
        ("running", all_but(SIGSEGV), 0, 0),
        ("130 0x7ffe", 0, 0, 0),  # waits for any signal
        ("130 0x7ffe", all_but(SIGTERM), 0, 0),  # for one that is no crash
        ("130 0x7ffe", all_but(SIGSEGV), 1 << 10, 0),  # for one that it handles
        ("130 0x7ffe", all_but(SIGSEGV), 0, 1 << 10),
        ("130 0x7ffe", all_but(SIGSEGV, SIGTERM), 0, 0),
    ],
)
def test_what_waits_for_something_else_lives(
    tmp_path: Path, call: str, blocked: int, handled: int, ignored: int
) -> None:
    thread(tmp_path, "7", call, blocked, handled, ignored)
    assert dying_of(tmp_path, "x86_64") is None


def test_a_process_that_is_gone_is_not_dying(tmp_path: Path) -> None:
    assert dying_of(tmp_path / "none", "x86_64") is None
    (tmp_path / "task" / "7").mkdir(parents=True)  # its files go before it does
    assert dying_of(tmp_path, "x86_64") is None


def test_a_watch_tells_once_and_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wherry_guest.agent.crash.INTERVAL", 0.001)
    answers = iter([None, None, SIGSEGV])
    monkeypatch.setattr("wherry_guest.agent.crash.dying_of", lambda process, machine: next(answers))
    loop = Loop()
    told: list[int] = []

    def heard(number: int) -> None:
        told.append(number)
        loop.stop()

    watch = CrashWatch(loop, 1, heard)
    loop.run()
    assert told == [SIGSEGV]
    watch.stop()
