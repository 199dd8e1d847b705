"""`ps`, made of the texts of /proc."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.engine.processes import parse_arguments, table
from wherry.errors import InvalidInput, LinkError

NOW_NS = 1_700_000_000 * 10**9  # 2023-11-14 22:13:20 UTC


def process(pid: int, comm: str = "sleep", cmdline: str = "sleep\x0010\0", **more: Any) -> Any:
    """`utime` ticks, `start` ticks since boot, `tty` number, `uid`."""
    fields = {
        "state": "S", "ppid": 1, "pgrp": pid, "session": pid, "tty": more.get("tty", 0),
        "tpgid": -1, "flags": 0, "minflt": 0, "cminflt": 0, "majflt": 0, "cmajflt": 0,
        "utime": more.get("utime", 0), "stime": 0, "cutime": 0, "cstime": 0, "priority": 20,
        "nice": more.get("nice", 0), "threads": more.get("threads", 1), "itrealvalue": 0,
        "starttime": more.get("start", 0), "vsize": 2048 * 1024, "rss": 300,
    }  # fmt: skip
    values = " ".join(str(value) for value in fields.values())
    uid = more.get("uid", 0)
    return {
        "pid": pid,
        "stat": f"{pid} ({comm}) {values} 0 0\n",
        "status": f"Name:\t{comm}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t0\t0\t0\t0\n",
        "cmdline": cmdline,
    }


def answer(*processes: Any) -> dict[str, Any]:
    return {
        "processes": list(processes),
        "clock_ticks": 100,
        "page_size": 4096,
        "memory_bytes": 1 << 30,
        "uptime_ns": 100 * 10**9,
        "time_ns": NOW_NS,
    }


def test_default_is_ps_ef() -> None:
    titles, rows = table(answer(process(42, utime=6100, start=1000)), "")
    assert titles == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert rows == [["root", "42", "1", "67", "22:11", "?", "00:01:01", "sleep 10"]]


def test_aux_is_ps_aux() -> None:
    titles, rows = table(
        answer(process(7, uid=1000, tty=136 << 8 | 3, utime=900, start=1000)), "aux"
    )
    assert titles == [
        "USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START", "TIME", "COMMAND",
    ]  # fmt: skip
    assert rows == [
        ["1000", "7", "10.0", "0.1", "2048", "1200", "pts/3", "Ss", "22:11", "0:09", "sleep 10"]
    ]


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ("-o pid,comm", ["PID", "COMMAND"]),
        ("-eo pid,user,args", ["PID", "USER", "COMMAND"]),
        ("-o pid=ID,etime", ["ID", "ELAPSED"]),
        ("--format pid,%cpu", ["PID", "%CPU"]),
        ("o pid,nlwp", ["PID", "NLWP"]),
        ("-e", ["PID", "TTY", "TIME", "CMD"]),
        ("ax", ["PID", "TTY", "STAT", "TIME", "COMMAND"]),
        ("-aux", ["USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START", "TIME",
                  "COMMAND"]),
    ],
)  # fmt: skip
def test_columns_are_chosen(text: str, titles: list[str]) -> None:
    assert [title for title, _ in parse_arguments(text)] == titles


@pytest.mark.parametrize("text", ["-z", "--sort=-pcpu", "-o", "-o pid,nothing", "-o comm", "-Z"])
def test_arguments_that_are_not_understood_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_arguments(text)


@given(st.text(max_size=30))
def test_any_arguments_give_columns_or_an_error(text: str) -> None:
    try:
        assert parse_arguments(text)
    except InvalidInput:
        pass


def test_a_command_may_be_named_anything() -> None:
    hostile = process(5, comm="a) S 1 (b", cmdline="")
    _, rows = table(answer(hostile), "-o pid,ppid,comm,args")
    assert rows == [["5", "1", "a) S 1 (b", "[a) S 1 (b]"]]


@pytest.mark.parametrize("broken", [{}, {"processes": [{}]}, {"processes": 5}])
def test_what_is_no_answer_is_a_link_error(broken: dict[str, Any]) -> None:
    full = {**answer(), **broken} if broken else {}
    with pytest.raises(LinkError):
        table(full, "")
