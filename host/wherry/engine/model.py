"""The engine's values: containers, execs, events, log frames. Frozen; a change makes a new value.

Leaf module: imports nothing of Wherry. Times are nanoseconds since the epoch, sizes bytes.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

STDOUT = 1
STDERR = 2
"""Stream numbers of a log frame (docs/agent-calls.md), and of Docker's multiplexed stream."""

SHORT_ID = 12
"""Characters of an id that people see; also the default host name of a container."""

Json = dict[str, Any]


class Status(enum.Enum):
    """Docker's `State.Status`."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    """It has ended, and its policy will start it again."""
    EXITED = "exited"
    REMOVING = "removing"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Volume:
    """A named directory on the guest's data disk that outlives containers.

    Attributes:
        directory: its name in the guest: the volume's own, unless an earlier volume of that name is
            still to be removed there.
        anonymous: nobody gave it a name: pruning takes it before others.
        options: Docker's `DriverOpts`, as given.
    """

    name: str
    created_ns: int
    directory: str
    anonymous: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MountPoint:
    """One place in a container where something of its own is mounted.

    Attributes:
        type: Docker's: `volume` or `tmpfs`.
        destination: a clean, absolute path.
        volume: the volume's name; "" for tmpfs, and for an anonymous volume until it has one.
        mode: the third part of `-v`, for inspect.
        subpath: the part of the volume that is mounted, "" for all of it.
        copy: fill an empty volume with what the image has at the destination.
        anonymous: nobody named the volume: it goes when the container is removed with its volumes.
        labels: of the volume, when it is made for this mount.
        options: tmpfs's mount options.
    """

    type: str
    destination: str
    volume: str = ""
    writable: bool = True
    mode: str = ""
    subpath: str = ""
    copy: bool = False
    anonymous: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IdRange:
    """`size` users (and groups) of the machine from `first` on: those of a user namespace."""

    first: int
    size: int


@dataclass(frozen=True, slots=True)
class Container:
    """One container.

    Attributes:
        id: 64 hex digits.
        image: the reference as the client gave it; `image_id`, `manifest_digest`: what it was then.
        config, host_config: Docker's `Config` (merged with the image's) and `HostConfig`.
        layers: diffIDs, lowest first.
        mounts: volumes and file systems in memory, in the order in which they are mounted.
        pid: in the VM's pid namespace; None unless running.
        exit_code: None until the container has run (or failed to start) once.
        log_bytes: length of its log when it last exited, where the next run's log begins; None when
            the machine went away under it.
        restart_count: starts by its policy since somebody started it.
        stopped_by_user: somebody has signalled it since its start.
        health: {status, failing_streak, changes, log} as the agent told last; None: no check.
        oom_kills: processes of its present run that were killed for want of memory.
        id_range: what its ids from 0 on are in the machine; None: it has no user namespace.
    """

    id: str
    name: str
    created_ns: int
    image: str
    image_id: str
    manifest_digest: str
    config: Json
    host_config: Json
    layers: tuple[str, ...]
    platform: str = "linux"
    mounts: tuple[MountPoint, ...] = ()
    status: Status = Status.CREATED
    pid: int | None = None
    exit_code: int | None = None
    error: str = ""
    oom_killed: bool = False
    started_ns: int | None = None
    finished_ns: int | None = None
    restart_count: int = 0
    log_bytes: int | None = 0
    stopped_by_user: bool = False
    health: Json | None = None
    oom_kills: int = 0
    id_range: IdRange | None = None

    @property
    def running(self) -> bool:
        """Docker's `State.Running`: also while it is paused, or about to be started again."""
        return self.status in (Status.RUNNING, Status.PAUSED, Status.RESTARTING)

    @property
    def alive(self) -> bool:
        """Whether it has a process."""
        return self.status in (Status.RUNNING, Status.PAUSED)

    def with_health_log(self, health: Json) -> Container:
        """With the results of `health`, told between two changes of its status."""
        return replace(self, health=health)

    @property
    def health_status(self) -> str:
        """starting, healthy or unhealthy; `none` without a check."""
        return str(self.health["status"]) if self.health else "none"

    @property
    def tty(self) -> bool:
        return bool(self.config.get("Tty"))

    @property
    def auto_remove(self) -> bool:
        return bool(self.host_config.get("AutoRemove"))

    @property
    def argv(self) -> tuple[str, ...]:
        """Entrypoint and command; Docker's `Path` is the first, `Args` are the others."""
        return (*(self.config.get("Entrypoint") or ()), *(self.config.get("Cmd") or ()))

    @property
    def labels(self) -> Mapping[str, str]:
        return self.config.get("Labels") or {}


@dataclass(frozen=True, slots=True)
class Exec:
    """One exec. `config` is the body of Docker's exec create request.

    Attributes:
        running: between a successful start and the exit.
        exit_code: None until it has ended (or failed to start).
        started: whether it was started once; an exec cannot be started again.
    """

    id: str
    container_id: str
    created_ns: int
    config: Json
    started: bool = False
    running: bool = False
    pid: int | None = None
    exit_code: int | None = None

    @property
    def tty(self) -> bool:
        return bool(self.config.get("Tty"))


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """What a waiter gets. `error` is the container's error text, empty when there is none."""

    code: int
    error: str = ""


class WaitCondition(enum.Enum):
    """Docker's wait conditions."""

    NOT_RUNNING = "not-running"
    NEXT_EXIT = "next-exit"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Event:
    """One event in Docker's shape. `seq` orders events and is 0 until it is stored."""

    type: str
    action: str
    actor_id: str
    time_ns: int
    attributes: Mapping[str, str] = field(default_factory=dict)
    seq: int = 0

    def as_json(self) -> Json:
        """The object that `GET /events` answers, with the old fields status, id and from."""
        shape: Json = {
            "Type": self.type,
            "Action": self.action,
            "Actor": {"ID": self.actor_id, "Attributes": dict(self.attributes)},
            "scope": "local",
            "time": self.time_ns // 1_000_000_000,
            "timeNano": self.time_ns,
        }
        if self.type in ("container", "image"):
            shape |= {"status": self.action, "id": self.actor_id}
        if self.type == "container" and "image" in self.attributes:
            shape["from"] = self.attributes["image"]
        return shape


@dataclass(frozen=True, slots=True)
class LogFrame:
    """One piece of output: `stream` is STDOUT or STDERR, `payload` at most 64 KiB."""

    stream: int
    time_ns: int
    payload: bytes


class Attachment(Protocol):
    """A client's hold on a container's or exec's input and output.

    `frames` must be read to its end even by a client that only writes: it ends when the process has
    ended (or will never start). What is written after that is dropped.
    """

    @property
    def tty(self) -> bool: ...

    def frames(self) -> AsyncIterator[tuple[int, bytes]]:
        """(stream, payload) pairs. Raises StreamReset when input was lost with the connection."""
        ...

    async def write(self, data: bytes) -> None:
        """Send input; waits until the process has started, and for its pace."""
        ...

    async def end_input(self) -> None:
        """No more input: the half-close."""
        ...

    async def aclose(self) -> None:
        """Let go; the process runs on. May be called twice."""
        ...
