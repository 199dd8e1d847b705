"""Saved machines on disk, made for their user: which there are, and what each one needs to go on.

    snapshots/NAME/         snapshot.json: what it is; data.qcow2, state.db: disk and rows;
                            state: memory and devices, where the machine ran; kernel, initrd
    snapshots/.NAME.new/    one that is being made
    suspended.json          the memory that goes with the data disk as it is now: the next start
                            takes it up, once
    suspended/              that memory, where it is of no snapshot

Rules: a directory is there whole or not at all. Memory goes with one disk at one moment: it is
taken up only while nothing has written to that disk since, and never twice. What cannot be taken up
costs a boot; the disk is never the price. Blocking.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wherry.errors import Conflict, InvalidInput, NotFound, StorageError
from wherry.osutil import atomic_write, fsync_directory, private_directory
from wherry.paths import DIRECTORY_NAME, MachinePaths

FORMAT = 1
"""Of snapshot.json and suspended.json: what has another one is not taken up."""

_NAME = re.compile(DIRECTORY_NAME + r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_RECORD = "snapshot.json"

IDLE = "idle"
SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True)
class PluggedLayer:
    """A layer's LUN as QEMU had it: its file, and the serial number that the guest has read."""

    lun: int
    serial: str
    path: str


@dataclass(frozen=True, slots=True)
class Board:
    """The machine that a saved state fits into: what QEMU is started as to take it up.

    Attributes:
        qemu: major and minor version.
        machine: the machine type with its version, never an alias (`pc-q35-7.2`).
        cpu: the processor model, as in `-cpu`.
        host: what the processor and the kernel below are, where the guest sees them.
        balloon: whether it has one.
    """

    arch: str
    accel: str
    qemu: tuple[int, int]
    machine: str
    cpu: str
    cpus: int
    memory_mib: int
    cmdline: str
    balloon: bool
    host: tuple[str, ...]
    layers: tuple[PluggedLayer, ...]
    image_key: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One of a machine's.

    Attributes:
        board: None: the machine was off, there is only its disk.
        containers: how many it knew, and how many of them ran.
    """

    name: str
    directory: Path
    saved_ns: int
    board: Board | None
    containers: int = 0
    running: int = 0

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def disk(self) -> Path:
        return self.directory / "data.qcow2"

    @property
    def rows(self) -> Path:
        return self.directory / "state.db"

    @property
    def kernel(self) -> Path:
        return self.directory / "kernel"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"

    def facts(self) -> dict[str, Any]:
        """For people: {name, saved_ns, running (whether memory is in it), containers, …}."""
        board = self.board
        return {
            "name": self.name,
            "saved_ns": self.saved_ns,
            "memory": board is not None,
            "containers": self.containers,
            "running": self.running,
            "machine_type": board.machine if board else None,
            "cpu": board.cpu if board else None,
            "qemu": ".".join(map(str, board.qemu)) if board else None,
            "memory_mib": board.memory_mib if board else None,
            "layers": len(board.layers) if board else 0,
            "bytes": _allocated(self.directory),
        }


def check_snapshot_name(name: str) -> str:
    """Raises InvalidInput when `name` cannot be a snapshot's."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name!r} cannot be a snapshot's name",
            hint="up to 63 letters, digits, '_', '.' and '-', beginning with a letter or digit, not"
            " ending with a dot, and no name that Windows keeps for itself (con, nul, aux)",
        )
    return name


class SnapshotShelf:
    """The snapshots of one machine."""

    def __init__(self, paths: MachinePaths) -> None:
        self._paths = paths
        self._directory = paths.snapshots

    def all(self) -> list[Snapshot]:
        """The oldest first; what cannot be read is left out."""
        try:
            entries = list(self._directory.iterdir())
        except FileNotFoundError:
            return []
        found = (read_snapshot(entry) for entry in entries if _NAME.fullmatch(entry.name))
        return sorted((it for it in found if it is not None), key=lambda it: it.saved_ns)

    def get(self, name: str) -> Snapshot:
        """Raises InvalidInput, NotFound, StorageError (it is damaged, or a newer Wherry's)."""
        directory = self._directory / check_snapshot_name(name)
        if not directory.is_dir():
            raise NotFound(
                f"no snapshot {name!r} of this machine", hint="wherry machine snapshot ls"
            )
        snapshot = read_snapshot(directory)
        if snapshot is None or not snapshot.disk.is_file() or not snapshot.rows.is_file():
            raise StorageError(
                f"snapshot {name!r} is damaged", hint=f"wherry machine snapshot rm {name}"
            )
        return snapshot

    def draft(self, name: str) -> Path:
        """An empty directory for a new one. Raises InvalidInput, Conflict (there is one)."""
        if (self._directory / check_snapshot_name(name)).exists():
            raise Conflict(
                f"there is a snapshot {name!r} already", hint=f"wherry machine snapshot rm {name}"
            )
        draft = private_directory(self._directory) / f".{name}.new"
        shutil.rmtree(draft, ignore_errors=True)  # of an attempt that was broken off
        return private_directory(draft)

    def publish(self, snapshot: Snapshot) -> Snapshot:
        """The draft gets its name. Raises Conflict, OSError."""
        write_snapshot(snapshot)
        target = self._directory / snapshot.name
        try:
            snapshot.directory.rename(target)
        except OSError as error:
            if target.exists():
                raise Conflict(f"there is a snapshot {snapshot.name!r} already") from error
            raise
        fsync_directory(self._directory)
        return replace(snapshot, directory=target)

    def remove(self, name: str) -> None:
        """Raises InvalidInput, NotFound, OSError."""
        directory = self._directory / check_snapshot_name(name)
        aside = self._directory / f".{name}.gone"
        shutil.rmtree(aside, ignore_errors=True)
        try:
            directory.rename(aside)
        except FileNotFoundError as error:
            raise NotFound(f"no snapshot {name!r} of this machine") from error
        shutil.rmtree(aside)

    def clear_away(self) -> None:
        """Remove what an engine left that was ended while it made or removed one."""
        for pattern in (".*.new", ".*.gone"):
            for left in self._directory.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)


def write_snapshot(snapshot: Snapshot) -> None:
    """Raises OSError."""
    data = {
        "format": FORMAT,
        "saved_ns": snapshot.saved_ns,
        "board": None if snapshot.board is None else asdict(snapshot.board),
        "containers": snapshot.containers,
        "running": snapshot.running,
    }
    atomic_write(snapshot.directory / _RECORD, json.dumps(data, indent=1).encode() + b"\n")
    fsync_directory(snapshot.directory)


def read_snapshot(directory: Path) -> Snapshot | None:
    """None: there is none, or none that this version understands."""
    try:
        data = json.loads((directory / _RECORD).read_bytes())
        if data["format"] != FORMAT:
            return None
        return Snapshot(
            name=directory.name,
            directory=directory,
            saved_ns=int(data["saved_ns"]),
            board=None if data["board"] is None else _board(data["board"]),
            containers=int(data["containers"]),
            running=int(data["running"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True, slots=True)
class Suspension:
    """Memory that waits for the next start.

    Attributes:
        kind: `idle`, or `snapshot`: then the start also takes the saved configuration.
        disk: facts of the data disk's file: it is as it was.
    """

    kind: str
    directory: Path
    disk: tuple[int, ...]


def suspend(paths: MachinePaths, kind: str, directory: Path) -> None:
    """The memory in `directory` belongs to the data disk as it is now. Raises OSError."""
    data = {
        "format": FORMAT,
        "kind": kind,
        "directory": os.path.relpath(directory, paths.root),
        "disk": _disk_facts(paths),
        "time_ns": time.time_ns(),
    }
    atomic_write(paths.suspended, json.dumps(data, indent=1).encode() + b"\n")


def read_suspension(paths: MachinePaths) -> Suspension | None:
    """What the next start takes up; None: nothing, or it does not fit the disk any more."""
    try:
        data = json.loads(paths.suspended.read_bytes())
        if data["format"] != FORMAT or data["disk"] != _disk_facts(paths):
            return None
        directory = paths.root / str(data["directory"])
        return Suspension(str(data["kind"]), directory, tuple(data["disk"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget_suspension(paths: MachinePaths) -> None:
    """From now on the memory is of no use: its disk goes on without it. On disk at once.

    Raises:
        OSError: it could not be forgotten, so nothing may write to the disk.
    """
    try:
        paths.suspended.unlink()
    except FileNotFoundError:
        return
    fsync_directory(paths.root)


def abandon(paths: MachinePaths) -> None:
    """Forget it and remove the memory. Raises OSError: as `forget_suspension`."""
    forget_suspension(paths)
    drop_memory(paths)


def drop_memory(paths: MachinePaths) -> None:
    """Remove the memory of a machine that was suspended and goes on, or never will."""
    shutil.rmtree(paths.suspended_memory, ignore_errors=True)


def _disk_facts(paths: MachinePaths) -> list[int]:
    status = paths.data_disk.stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns]


def _board(data: Mapping[str, Any]) -> Board:
    values = dict(data)
    values["qemu"] = tuple(values["qemu"])
    values["host"] = tuple(values["host"])
    values["layers"] = tuple(PluggedLayer(**layer) for layer in values["layers"])
    return Board(**values)


def _allocated(directory: Path) -> int:
    """Bytes on disk: holes do not count."""
    return sum(_blocks(file) for file in _files(directory))


def _files(directory: Path) -> Iterator[Path]:
    try:
        yield from directory.iterdir()
    except OSError:
        return


def _blocks(file: Path) -> int:
    try:
        status = file.stat()
    except OSError:
        return 0
    blocks = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else int(blocks) * 512
