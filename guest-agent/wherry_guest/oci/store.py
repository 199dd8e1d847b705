"""The state directory: one directory per container, with its record, its config and its socket.

    ROOT/ID/state.json    the record, written before anybody is told of the container
    ROOT/ID/config.json   the bundle's config as it was at `create`
    ROOT/ID/start.sock    there while the container waits for its start

Rules: a record is replaced, never edited in place; commands that change a container hold its lock;
whether a process lives is asked of the kernel, by pid and start time, never remembered.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from wherry_guest.oci.errors import OciError

DEFAULT_ROOT: Final = Path("/run/wherry-oci")
RECORD: Final = "state.json"
CONFIG: Final = "config.json"
SOCKET: Final = "start.sock"

_ID: Final = re.compile(r"[A-Za-z0-9_+.-]{1,1024}")
_DEAD: Final = ("Z", "X", "x")  # proc_pid_stat(5)


class Status(enum.Enum):
    """As in the runtime spec (runtime.md, "State"), and runc's `paused`."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a container between commands.

    Args:
        start_time: of the process, in clock ticks after boot: with the pid it names one process.
        cgroup: its directory, None without one.
        cgroups_made: what was made for it, topmost first; removed with it.
    """

    id: str
    bundle: str
    rootfs: str
    created: str
    annotations: dict[str, str]
    pid: int = 0
    start_time: int = 0
    cgroup: str | None = None
    cgroups_made: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A container in the store: its directory, and its record at the time of reading."""

    directory: Path
    record: Record

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def socket(self) -> Path:
        return self.directory / SOCKET

    def config(self) -> dict[str, Any]:
        """The config as it was at `create`."""
        config: dict[str, Any] = json.loads((self.directory / CONFIG).read_text("utf-8"))
        return config

    def alive(self) -> bool:
        record = self.record
        return record.pid != 0 and start_time(record.pid) == record.start_time

    def status(self) -> Status:
        if not self.alive():
            return Status.STOPPED if self.record.pid else Status.CREATING
        if self.socket.exists():
            return Status.CREATED
        cgroup = self.record.cgroup
        if cgroup is not None and _first_line(Path(cgroup) / "cgroup.freeze") == "1":
            return Status.PAUSED
        return Status.RUNNING

    def save(self, **changes: Any) -> Entry:
        """Store the record with these changes, and give the new entry."""
        record = replace(self.record, **changes)
        temporary = self.directory / f".{RECORD}"
        temporary.write_text(json.dumps(asdict(record)), encoding="utf-8")
        temporary.rename(self.directory / RECORD)
        return Entry(self.directory, record)

    @contextlib.contextmanager
    def lock(self) -> Iterator[Entry]:
        """Hold the container's lock; gives the entry as it is now.

        Raises:
            OciError: it was deleted meanwhile.
        """
        import fcntl

        fd = os.open(self.directory, os.O_RDONLY)
        try:
            lock: Any = fcntl
            lock.flock(fd, lock.LOCK_EX)
            yield read(self.directory)
        finally:
            os.close(fd)


class Store:
    """All containers below one root directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, record: Record, config: bytes) -> Entry:
        """Take the id. Raises OciError when it is none, or is taken."""
        check_id(record.id)
        directory = self.root / record.id
        self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        try:
            directory.mkdir(mode=0o711)
        except FileExistsError as error:
            raise OciError(f"container {record.id} exists already") from error
        entry = Entry(directory, record)
        try:
            (directory / CONFIG).write_bytes(config)
            return entry.save()
        except OSError:
            self.remove(entry)
            raise

    def find(self, id: str) -> Entry:
        """The container; OciError when there is none."""
        check_id(id)
        if not (self.root / id).is_dir():
            raise OciError(f"container {id} does not exist")
        return read(self.root / id)

    def all(self) -> list[Entry]:
        """Every container, by id."""
        if not self.root.is_dir():
            return []
        return [read(path) for path in sorted(self.root.iterdir()) if (path / RECORD).exists()]

    def remove(self, entry: Entry) -> None:
        shutil.rmtree(entry.directory)


def check_id(id: str) -> None:
    """Raises OciError when `id` is not a container's name."""
    if not _ID.fullmatch(id) or id in (".", ".."):
        raise OciError(f"container ID {id!r} is not one: letters, digits, _ + . - are possible")


def read(directory: Path) -> Entry:
    """The entry in `directory`; OciError."""
    try:
        data = json.loads((directory / RECORD).read_text("utf-8"))
    except FileNotFoundError as error:
        raise OciError(f"container {directory.name} does not exist") from error
    return Entry(directory, Record(**{**data, "cgroups_made": tuple(data["cgroups_made"])}))


def start_time(pid: int) -> int:
    """When the process was started, in clock ticks after boot; 0: there is none, or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = text[text.rindex(")") + 2 :].split()  # from the third field on: proc_pid_stat(5)
    return 0 if fields[0] in _DEAD else int(fields[19])


def _first_line(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""
