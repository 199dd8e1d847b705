"""A container's cgroup on a host that is not ours: where it is, making it, emptying it.

Rules: cgroup v2 only. Where the v2 tree lacks controllers (a host that has them in v1) containers
without limits work; a limit is refused by the step that writes it. What was made is remembered, so
that nothing is left; what was there before stays.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wherry_guest.oci.errors import OciError

PARENT: Final = "wherry-oci"
"""Below the root of the tree: the parent of containers whose spec names no absolute cgroupsPath."""

DEADLINE: Final = 10.0
"""Seconds for processes to end, or to freeze."""

_select: Final[Any] = select
_signal: Final[Any] = signal


@dataclass(frozen=True, slots=True)
class Made:
    """The cgroup's directory, and what was made for it, topmost first."""

    directory: str
    made: tuple[str, ...]


def tree() -> Path | None:
    """Where this host has its cgroup v2 tree; None: nowhere."""
    for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            return Path(fields[4].encode().decode("unicode_escape"))
    return None


def place(cgroups_path: str, id: str) -> str:
    """The path below the tree for `linux.cgroupsPath`; OciError."""
    if cgroups_path.startswith("/"):
        path = cgroups_path.strip("/")
    else:
        path = f"{PARENT}/{cgroups_path.strip('/') or id}"
    parts = path.split("/")
    if ":" in cgroups_path and cgroups_path.count(":") == 2 and "/" not in cgroups_path:
        words = "is systemd's form, and there is no --systemd-cgroup here"
        raise OciError(f"linux.cgroupsPath {cgroups_path!r} {words}")
    if not all(part not in ("", ".", "..") for part in parts):
        raise OciError(f"linux.cgroupsPath {cgroups_path!r} is not a path below the tree")
    return path


def make(root: Path, path: str) -> Made:
    """Make the cgroup `path`, with every controller that its parents can give.

    Raises:
        OciError: it cannot be made, or there are processes in it.
    """
    made: list[str] = []
    directory = root
    try:
        for part in path.split("/"):
            _hand_down(directory)
            directory = directory / part
            try:
                directory.mkdir(mode=0o755)
                made.append(os.fspath(directory))
            except FileExistsError:
                continue
        if pids(os.fspath(directory)):
            raise OciError(f"the cgroup {directory} (linux.cgroupsPath) has processes already")
    except OSError as error:
        unmake(made)
        raise OciError(f"make the cgroup {directory}: {error.strerror}") from error
    except OciError:
        unmake(made)
        raise
    return Made(os.fspath(directory), tuple(made))


def _hand_down(directory: Path) -> None:
    """Give what is below all controllers that can be given; the limits say what is missing."""
    available = set((directory / "cgroup.controllers").read_text("utf-8").split())
    control = directory / "cgroup.subtree_control"
    for name in sorted(available - set(control.read_text("utf-8").split())):
        try:
            control.write_text(f"+{name}", encoding="utf-8")
        except OSError as error:
            # processes in it, a realtime one, or a threaded tree: cgroups(7)
            if error.errno not in (errno.EBUSY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT):
                raise


def unmake(made: list[str] | tuple[str, ...]) -> None:
    """Remove what `make` has made, as far as it is empty and there."""
    for path in reversed(made):
        try:
            Path(path).rmdir()
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOENT, errno.ENOTEMPTY):
                raise


def pids(directory: str) -> list[int]:
    """Every process in the cgroup and below it."""
    found: list[int] = []
    for path, _, _ in os.walk(directory):
        try:
            text = (Path(path) / "cgroup.procs").read_text("utf-8")
        except OSError:
            continue  # removed meanwhile, or threaded: its processes are in the domain above
        found += [int(line) for line in text.split()]
    return found


def kill(directory: str) -> None:
    """SIGKILL to every process in it and below, now and for as long as they are forked."""
    control = Path(directory) / "cgroup.kill"
    if control.exists():  # since 5.14
        control.write_text("1", encoding="utf-8")
        return
    for pid in pids(directory):
        try:
            os.kill(pid, _signal.SIGKILL)
        except ProcessLookupError:
            continue


def remove(record_cgroup: str, made: tuple[str, ...]) -> None:
    """Kill what is in it, wait for that, remove it and what was made below and for it.

    Raises:
        OciError: processes in it do not end.
    """
    directory = Path(record_cgroup)
    if directory.is_dir():
        kill(record_cgroup)
        _await_event(directory, "populated", "0", "the processes of the container to end")
        for path, _, _ in os.walk(record_cgroup, topdown=False):
            if path != record_cgroup:
                Path(path).rmdir()
        if record_cgroup not in made:
            made = (*made, record_cgroup)
    unmake(made)


def freeze(directory: str, frozen: bool) -> None:
    """Pause or resume everything in it, and wait for that; OciError."""
    value = "1" if frozen else "0"
    try:
        (Path(directory) / "cgroup.freeze").write_text(value, encoding="utf-8")
    except OSError as error:
        raise OciError(f"set cgroup.freeze to {value}: {error.strerror}") from error
    _await_event(Path(directory), "frozen", value, "the container to freeze")


def _await_event(directory: Path, key: str, value: str, what: str) -> None:
    """Wait until cgroup.events says `key` `value`: the kernel tells of every change (POLLPRI)."""
    deadline = time.monotonic() + DEADLINE
    with (directory / "cgroup.events").open(encoding="utf-8") as file:
        poller = _select.poll()
        poller.register(file, _select.POLLPRI)
        while True:
            file.seek(0)
            events = dict(line.split() for line in file.read().splitlines())
            if events.get(key) == value:
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise OciError(f"waited {DEADLINE:.0f} s for {what}")
            poller.poll(left * 1000)
