"""`docker top`: the columns of `ps`, made of what the guest's /proc says. Pure.

No `ps` runs anywhere: the agent sends the texts of /proc/PID/stat, status and cmdline. Columns and
forms are procps'; a form that is not known is an error, not a guess.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.errors import InvalidInput, LinkError

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Process:
    """One process. Times are seconds, sizes KiB; `since_boot`: when it began."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    uid: int
    gid: int
    state: str
    priority: int
    nice: int
    threads: int
    tty: str
    comm: str
    command: str
    cpu_seconds: float
    since_boot: float
    vsz: int
    rss: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What the processes are measured against."""

    uptime: float
    time_ns: int
    memory: int


Column = Callable[[Process, Machine], str]


def _elapsed(process: Process, machine: Machine) -> float:
    return max(0.0, machine.uptime - process.since_boot)


def _start(process: Process, machine: Machine) -> str:
    """HH:MM within the last day, else MonDD; UTC, the machine's own."""
    began = machine.time_ns / _NS - _elapsed(process, machine)
    form = "%H:%M" if machine.time_ns / _NS - began < 86400 else "%b%d"
    return time.strftime(form, time.gmtime(began))


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def _etime(process: Process, machine: Machine) -> str:
    whole = int(_elapsed(process, machine))
    days, rest = divmod(whole, 86400)
    clock = f"{rest // 60 % 60:02}:{rest % 60:02}"
    if days or rest >= 3600:
        clock = f"{rest // 3600:02}:{clock}"
    return f"{days}-{clock}" if days else clock


def _pcpu(process: Process, machine: Machine) -> float:
    elapsed = _elapsed(process, machine)
    return 100 * process.cpu_seconds / elapsed if elapsed >= 0.01 else 0.0


def _stat(process: Process, _machine: Machine) -> str:
    """procps' state with its marks: high and low priority, session leader, threads."""
    marks = "<" if process.nice < 0 else "N" if process.nice > 0 else ""
    marks += "s" if process.sid == process.pid else ""
    return process.state + marks + ("l" if process.threads > 1 else "")


_COLUMNS: Mapping[str, tuple[str, Column]] = {
    "pid": ("PID", lambda p, m: str(p.pid)),
    "ppid": ("PPID", lambda p, m: str(p.ppid)),
    "pgid": ("PGID", lambda p, m: str(p.pgid)),
    "sid": ("SID", lambda p, m: str(p.sid)),
    "uid": ("UID", lambda p, m: str(p.uid)),
    "user": ("USER", lambda p, m: _user(p.uid)),
    "gid": ("GID", lambda p, m: str(p.gid)),
    "group": ("GROUP", lambda p, m: _user(p.gid)),
    "c": ("C", lambda p, m: str(min(99, int(_pcpu(p, m))))),
    "pcpu": ("%CPU", lambda p, m: f"{_pcpu(p, m):.1f}"),
    "pmem": ("%MEM", lambda p, m: f"{100 * p.rss * 1024 / (m.memory or 1):.1f}"),
    "vsz": ("VSZ", lambda p, m: str(p.vsz)),
    "rss": ("RSS", lambda p, m: str(p.rss)),
    "tty": ("TTY", lambda p, m: p.tty),
    "stat": ("STAT", _stat),
    "s": ("S", lambda p, m: p.state),
    "pri": ("PRI", lambda p, m: str(39 - p.priority)),
    "ni": ("NI", lambda p, m: str(p.nice)),
    "nlwp": ("NLWP", lambda p, m: str(p.threads)),
    "stime": ("STIME", _start),
    "start": ("START", _start),
    "time": ("TIME", lambda p, m: _clock(p.cpu_seconds)),
    "bsdtime": (
        "TIME",
        lambda p, m: f"{int(p.cpu_seconds) // 60}:{int(p.cpu_seconds) % 60:02}",
    ),
    "etime": ("ELAPSED", _etime),
    "etimes": ("ELAPSED", lambda p, m: str(int(_elapsed(p, m)))),
    "comm": ("COMMAND", lambda p, m: p.comm),
    "cmd": ("CMD", lambda p, m: p.command),
    "args": ("COMMAND", lambda p, m: p.command),
}
_ALIASES = {
    "%cpu": "pcpu", "%mem": "pmem", "vsize": "vsz", "rssize": "rss", "rsz": "rss", "tt": "tty",
    "tname": "tty", "state": "s", "nice": "ni", "thcount": "nlwp", "start_time": "stime",
    "bsdstart": "start", "lstart": "start", "cputime": "time", "ucmd": "comm", "ucomm": "comm",
    "command": "args", "euid": "uid", "ruid": "uid", "euser": "user", "ruser": "user",
    "uname": "user", "egid": "gid", "rgid": "gid", "pgrp": "pgid", "sess": "sid", "session": "sid",
}  # fmt: skip

_FULL = ("user:UID", "pid", "ppid", "c", "stime", "tty", "time", "cmd")
_USER = (
    "user", "pid", "pcpu", "pmem", "vsz", "rss", "tty", "stat", "start", "bsdtime:TIME", "args",
)  # fmt: skip
_PLAIN = ("pid", "tty", "time", "comm:CMD")
_BSD = ("pid", "tty", "stat", "bsdtime:TIME", "args")


def table(answer: Mapping[str, Any], ps_args: str) -> tuple[list[str], list[list[str]]]:
    """Titles and rows as `ps` with these arguments would show them.

    Args:
        answer: of the agent's `container.top`.
        ps_args: `-ef` (the default), `aux`, `-o LIST` and their like.

    Raises:
        InvalidInput: arguments that are not understood, or a choice of columns without the pid.
        LinkError: the guest sent something else.
    """
    columns = parse_arguments(ps_args)
    machine, processes = _read(answer)
    titles = [title for title, _ in columns]
    return titles, [[show(it, machine) for _, show in columns] for it in processes]


def parse_arguments(text: str) -> list[tuple[str, Column]]:
    """(title, column) pairs for arguments of `ps`. Which processes are shown is given."""
    words = text.split() or ["-ef"]
    chosen: list[str] = []
    full = user = bsd = False
    while words:
        word = words.pop(0)
        if word in ("--format", "-o", "o") or (word.startswith("-") and word.endswith("o")):
            if not words:
                raise InvalidInput(f"ps: {word} needs a list of columns")
            _check_letters(word.lstrip("-")[:-1] if word != "--format" else "", text)
            chosen += _list(words)
            continue
        if word.startswith("--format="):
            chosen += word.partition("=")[2].split(",")
            continue
        letters = word.lstrip("-")
        _check_letters(letters, text)
        full = full or ("f" in letters and word.startswith("-")) or letters in ("ef", "eF")
        user = user or "u" in letters
        bsd = bsd or not word.startswith("-")
    forms = chosen or (_USER if user else _FULL if full else _BSD if bsd else _PLAIN)
    columns = [_column(form) for form in forms]
    if not chosen or any(_name(form) == "pid" for form in chosen):
        return columns
    raise InvalidInput("Couldn't find PID field in ps output", hint="name pid among the columns")


def _list(words: list[str]) -> list[str]:
    """The value of -o: one word, or a few where a title has spaces no more than that."""
    names = words.pop(0).split(",")
    return [name for name in names if name]


def _check_letters(letters: str, text: str) -> None:
    unknown = sorted(set(letters) - set("aAdeFfuwxT"))
    if unknown:
        raise InvalidInput(
            f"ps: the arguments {text!r} are not understood",
            hint="known: -ef, aux, -o with names of columns",
        )


def _name(form: str) -> str:
    name = form.partition("=")[0].partition(":")[0].lower()
    return _ALIASES.get(name, name)


def _column(form: str) -> tuple[str, Column]:
    """`name`, `name=TITLE`; our own forms also write `name:TITLE`."""
    name = _name(form)
    if name not in _COLUMNS:
        raise InvalidInput(
            f"error: unknown user-defined format specifier {form!r}",
            hint=f"known: {', '.join(_COLUMNS)}",
        )
    title, show = _COLUMNS[name]
    for separator in "=:":
        if separator in form:
            title = form.partition(separator)[2]
            break
    return title, show


def _user(number: int) -> str:
    """The machine knows no users but root; the container's names are the container's affair."""
    return "root" if number == 0 else str(number)


def _read(answer: Mapping[str, Any]) -> tuple[Machine, Sequence[Process]]:
    try:
        machine = Machine(answer["uptime_ns"] / _NS, answer["time_ns"], answer["memory_bytes"])
        ticks, page = answer["clock_ticks"], answer["page_size"]
        return machine, [_process(item, ticks, page) for item in answer["processes"]]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise LinkError("the guest sent processes that are none") from error


def _process(item: Mapping[str, Any], ticks: int, page: int) -> Process:
    """proc_pid_stat(5): what follows the command, which may hold any character, in parentheses."""
    head, _, tail = item["stat"].rpartition(")")
    comm = head.partition("(")[2]
    fields = tail.split()
    state = fields[0]
    ppid, pgid, sid, tty = (int(value) for value in fields[1:5])
    user, system, began, vsize, rss = (int(fields[at]) for at in (11, 12, 19, 20, 21))
    ids = {
        line.partition(":")[0]: int(line.split()[2])  # the effective one
        for line in item["status"].splitlines()
        if line.startswith(("Uid:", "Gid:"))
    }
    words = item["cmdline"].rstrip("\0").replace("\0", " ")
    return Process(
        pid=int(item["pid"]),
        ppid=ppid,
        pgid=pgid,
        sid=sid,
        uid=ids["Uid"],
        gid=ids["Gid"],
        state=state,
        priority=int(fields[15]),
        nice=int(fields[16]),
        threads=int(fields[17]),
        tty=_tty(tty),
        comm=comm,
        command=words or f"[{comm}]",
        cpu_seconds=(user + system) / ticks,
        since_boot=began / ticks,
        vsz=vsize // 1024,
        rss=rss * page // 1024,
    )


def _tty(number: int) -> str:
    """Only pseudo terminals have names here (Documentation/admin-guide/devices.txt: 136 to 143)."""
    if not number:
        return "?"
    major, minor = number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00
    return f"pts/{(major - 136) * 256 + minor}" if 136 <= major <= 143 else f"{major}:{minor}"
