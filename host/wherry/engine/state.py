"""state.db: what a machine's engine must not forget. One SQLite file, one transaction per change.

Called on the event loop's thread: a commit takes 0.15 ms on an SSD's journal and a few where the
disk must be flushed for real, less than a hop through a thread and back costs in ordering. WAL with
synchronous=FULL: what was committed survives a power cut.

The schema only moves forward: `_MIGRATIONS[n]` takes version n to n + 1, and is never edited once
released. A newer engine's file is refused.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wherry.engine.model import Container, Event, Exec, IdRange, MountPoint, Status, Volume
from wherry.errors import StorageError
from wherry.osutil.databases import Database, database_hint
from wherry.osutil.reserve import Reserve

KEEP_EVENTS = 10_000
"""Events kept; Docker's engine keeps its last 256, in memory."""

_PRUNE_EVERY = 500

_MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE containers (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, created_ns INTEGER NOT NULL,
        image TEXT NOT NULL, image_id TEXT NOT NULL, config TEXT NOT NULL,
        manifest_digest TEXT NOT NULL, host_config TEXT NOT NULL, layers TEXT NOT NULL,
        platform TEXT NOT NULL, status TEXT NOT NULL, pid INTEGER,
        exit_code INTEGER, error TEXT NOT NULL, oom_killed INTEGER NOT NULL, started_ns INTEGER,
        finished_ns INTEGER, restart_count INTEGER NOT NULL, log_bytes INTEGER
    ) STRICT;
    CREATE TABLE execs (
        id TEXT PRIMARY KEY,
        container_id TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
        created_ns INTEGER NOT NULL, config TEXT NOT NULL, started INTEGER NOT NULL,
        running INTEGER NOT NULL, pid INTEGER, exit_code INTEGER
    ) STRICT;
    CREATE INDEX execs_by_container ON execs (container_id);
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, time_ns INTEGER NOT NULL, type TEXT NOT NULL,
        action TEXT NOT NULL, actor_id TEXT NOT NULL, attributes TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_by_time ON events (time_ns);
    -- containers that are gone here and whose directories the guest still has
    CREATE TABLE removals (id TEXT PRIMARY KEY) STRICT;
    """,
    """
    ALTER TABLE containers ADD COLUMN mounts TEXT NOT NULL DEFAULT '[]';
    CREATE TABLE volumes (
        name TEXT PRIMARY KEY, created_ns INTEGER NOT NULL, directory TEXT NOT NULL UNIQUE,
        anonymous INTEGER NOT NULL, labels TEXT NOT NULL, options TEXT NOT NULL
    ) STRICT;
    -- directories of volumes that are gone here and that the guest may still have
    CREATE TABLE volume_removals (directory TEXT PRIMARY KEY) STRICT;
    """,
    """
    ALTER TABLE containers ADD COLUMN stopped_by_user INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE containers ADD COLUMN health TEXT;
    ALTER TABLE containers ADD COLUMN oom_kills INTEGER NOT NULL DEFAULT 0;
    -- single facts, such as the boot whose containers were started
    CREATE TABLE marks (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    """,
    """
    -- [first, size] of the user namespace's ids in the machine
    ALTER TABLE containers ADD COLUMN id_range TEXT;
    """,
)

_CONTAINER_FIELDS = (
    "id", "name", "created_ns", "image", "image_id", "manifest_digest", "config", "host_config",
    "layers", "platform", "mounts", "status", "pid", "exit_code", "error", "oom_killed",
    "started_ns", "finished_ns", "restart_count", "log_bytes", "stopped_by_user", "health",
    "oom_kills", "id_range",
)  # fmt: skip
_CONTAINER_CHANGES = (
    "name", "status", "pid", "exit_code", "error", "oom_killed", "started_ns", "finished_ns",
    "restart_count", "log_bytes", "stopped_by_user", "health", "oom_kills", "host_config",
)  # fmt: skip
_VOLUME_FIELDS = ("name", "created_ns", "directory", "anonymous", "labels", "options")
_EXEC_FIELDS = (
    "id", "container_id", "created_ns", "config", "started", "running", "pid", "exit_code",
)  # fmt: skip


class Transaction:
    """The changes of one commit. Only usable inside `State.transaction`.

    Attributes:
        events: how many are stored with it.
        frees: something is deleted: on a full disk it may take of the reserve.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.events = 0
        self.frees = False

    def add_container(self, container: Container) -> None:
        _insert(self._connection, "containers", _container_row(container))

    def update_container(self, container: Container) -> None:
        row = _container_row(container)
        assignments = ", ".join(f"{name} = :{name}" for name in _CONTAINER_CHANGES)
        self._connection.execute(f"UPDATE containers SET {assignments} WHERE id = :id", row)

    def delete_container(self, container_id: str) -> None:
        """Forget it and its execs, and note that the guest must remove what it has of it."""
        self.frees = True
        self._connection.execute("DELETE FROM containers WHERE id = ?", (container_id,))
        self._connection.execute("INSERT OR IGNORE INTO removals VALUES (?)", (container_id,))

    def add_volume(self, volume: Volume) -> None:
        row = {name: getattr(volume, name) for name in _VOLUME_FIELDS}
        row["anonymous"] = int(volume.anonymous)
        for name in ("labels", "options"):
            row[name] = json.dumps(dict(row[name]))
        _insert(self._connection, "volumes", row)

    def delete_volume(self, volume: Volume) -> None:
        """Forget it, and note that the guest must remove its directory."""
        self.frees = True
        self._connection.execute("DELETE FROM volumes WHERE name = ?", (volume.name,))
        self._connection.execute(
            "INSERT OR IGNORE INTO volume_removals VALUES (?)", (volume.directory,)
        )

    def delete_volume_removal(self, directory: str) -> None:
        self._connection.execute("DELETE FROM volume_removals WHERE directory = ?", (directory,))

    def save_exec(self, execution: Exec) -> None:
        row = _exec_row(execution)
        names = ", ".join(row)
        places = ", ".join(f":{name}" for name in row)
        self._connection.execute(f"INSERT OR REPLACE INTO execs ({names}) VALUES ({places})", row)

    def delete_exec(self, exec_id: str) -> None:
        self._connection.execute("DELETE FROM execs WHERE id = ?", (exec_id,))

    def delete_removal(self, container_id: str) -> None:
        self._connection.execute("DELETE FROM removals WHERE id = ?", (container_id,))

    def set_mark(self, name: str, value: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (name, value))

    def add_event(self, event: Event) -> None:
        _insert(self._connection, "events", _event_row(event))
        self.events += 1


class State:
    """An open state.db. `on_events` is called after each commit that stored events.

    Where the disk takes nothing it is a copy in memory, to read; each change tries again first.
    """

    def __init__(self, path: Path, database: Database) -> None:
        self._path = path
        self._database = database
        self._reserve = Reserve(path.parent)
        self._since_prune = 0
        self.on_events: Callable[[], None] = lambda: None

    @classmethod
    def open(cls, path: Path) -> State:
        """Open the file, made or migrated where needed.

        Raises:
            StorageError: it is not such a file, or a newer Wherry's.
        """
        try:
            return cls(path, Database(path, lambda: _connect(path), _migrated))
        except sqlite3.Error as error:
            hint = database_hint(error, path)
            raise StorageError(f"cannot open {path}: {error}", hint=hint) from error

    @property
    def _connection(self) -> sqlite3.Connection:
        return self._database.connection

    def close(self) -> None:
        self._database.close()

    def copy_to(self, path: Path) -> None:
        """Write a copy of all that is committed to `path`, which must not exist.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            self._connection.execute("VACUUM INTO ?", (str(path),))
        except sqlite3.Error as error:
            raise StorageError(f"cannot copy the machine's state to {path}: {error}") from error

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Commit what the block changed, all or nothing. Raises StorageError."""
        try:
            transaction = Transaction(self._database.writable())
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield transaction
                self._prune_events(transaction.events)
                if transaction.frees:
                    self._reserve.release_when_full()
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StorageError(
                f"cannot write the machine's state: {error}", hint=database_hint(error, self._path)
            ) from error
        if transaction.events:
            self.on_events()

    def containers(self) -> list[Container]:
        names = ", ".join(_CONTAINER_FIELDS)
        rows = self._connection.execute(f"SELECT {names} FROM containers ORDER BY created_ns")
        return [_container(dict(zip(_CONTAINER_FIELDS, row, strict=True))) for row in rows]

    def execs(self) -> list[Exec]:
        names = ", ".join(_EXEC_FIELDS)
        rows = self._connection.execute(f"SELECT {names} FROM execs ORDER BY created_ns")
        return [_exec(dict(zip(_EXEC_FIELDS, row, strict=True))) for row in rows]

    def volumes(self) -> list[Volume]:
        names = ", ".join(_VOLUME_FIELDS)
        rows = self._connection.execute(f"SELECT {names} FROM volumes ORDER BY created_ns")
        return [_volume(dict(zip(_VOLUME_FIELDS, row, strict=True))) for row in rows]

    def volume_removals(self) -> list[str]:
        rows = self._connection.execute("SELECT directory FROM volume_removals")
        return [row[0] for row in rows]

    def removals(self) -> list[str]:
        return [row[0] for row in self._connection.execute("SELECT id FROM removals")]

    def mark(self, name: str) -> str:
        """A fact that was noted; empty when it was not."""
        row = self._connection.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def last_event(self) -> int:
        """The newest event's seq; 0 when there is none."""
        row = self._connection.execute("SELECT max(seq) FROM events").fetchone()
        return int(row[0] or 0)

    def events_after(self, seq: int, *, since_ns: int = 0, limit: int = 1000) -> list[Event]:
        """Stored events in order, newer than `seq` and not older than `since_ns`."""
        rows = self._connection.execute(
            "SELECT seq, time_ns, type, action, actor_id, attributes FROM events"
            " WHERE seq > ? AND time_ns >= ? ORDER BY seq LIMIT ?",
            (seq, since_ns, limit),
        )
        return [
            Event(kind, action, actor, time_ns, json.loads(attributes), seq)
            for seq, time_ns, kind, action, actor, attributes in rows
        ]

    def pretending(self) -> AbstractContextManager[None]:
        """As `Database.pretending`: for what the next engine finds out again by itself."""
        return self._database.pretending()

    def _prune_events(self, added: int) -> None:
        """In the transaction that added them: a failure here must not look like a failed change."""
        self._since_prune += added
        if self._since_prune >= _PRUNE_EVERY:
            self._since_prune = 0
            self._connection.execute(
                "DELETE FROM events WHERE seq <= (SELECT max(seq) FROM events) - ?", (KEEP_EVENTS,)
            )


def migrate(connection: sqlite3.Connection, migrations: tuple[str, ...]) -> None:
    """Bring the file's schema to `len(migrations)`, each step in a transaction of its own.

    Raises:
        StorageError: the file is of a newer version.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        raise StorageError(
            f"the machine's state is of version {version}, this Wherry knows {len(migrations)}",
            hint="use the newer Wherry that wrote it",
        )
    for number in range(version, len(migrations)):
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{migrations[number]}\nPRAGMA user_version = {number + 1};\nCOMMIT;"
        )


def _connect(path: Path) -> sqlite3.Connection:
    """Raises sqlite3.Error, and as `migrate`."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        _configure(connection)
        _migrated(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _migrated(connection: sqlite3.Connection) -> None:
    migrate(connection, _MIGRATIONS)


def _configure(connection: sqlite3.Connection) -> None:
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        "fullfsync = ON",  # macOS: F_FULLFSYNC; no effect elsewhere
        "checkpoint_fullfsync = ON",
        "foreign_keys = ON",
        "busy_timeout = 5000",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _insert(connection: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    names, places = ", ".join(row), ", ".join(f":{name}" for name in row)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", row)


def _container_row(container: Container) -> dict[str, Any]:
    row = {name: getattr(container, name) for name in _CONTAINER_FIELDS}
    row["status"] = container.status.value
    row["oom_killed"] = int(container.oom_killed)
    row["stopped_by_user"] = int(container.stopped_by_user)
    row["health"] = None if container.health is None else json.dumps(container.health)
    for name in ("config", "host_config"):
        row[name] = json.dumps(row[name])
    row["layers"] = json.dumps(list(container.layers))
    row["mounts"] = json.dumps([asdict(mount) for mount in container.mounts])
    ids = container.id_range
    row["id_range"] = None if ids is None else json.dumps([ids.first, ids.size])
    return row


def _container(row: dict[str, Any]) -> Container:
    row["status"] = Status(row["status"])
    row["oom_killed"] = bool(row["oom_killed"])
    row["stopped_by_user"] = bool(row["stopped_by_user"])
    row["health"] = None if row["health"] is None else json.loads(row["health"])
    for name in ("config", "host_config"):
        row[name] = json.loads(row[name])
    row["layers"] = tuple(json.loads(row["layers"]))
    row["mounts"] = tuple(_mount_point(item) for item in json.loads(row["mounts"]))
    row["id_range"] = None if row["id_range"] is None else IdRange(*json.loads(row["id_range"]))
    return Container(**row)


def _mount_point(item: dict[str, Any]) -> MountPoint:
    return MountPoint(**{**item, "options": tuple(item["options"])})


def _volume(row: dict[str, Any]) -> Volume:
    row["anonymous"] = bool(row["anonymous"])
    for name in ("labels", "options"):
        row[name] = json.loads(row[name])
    return Volume(**row)


def _exec_row(execution: Exec) -> dict[str, Any]:
    row = {name: getattr(execution, name) for name in _EXEC_FIELDS}
    row["config"] = json.dumps(execution.config)
    return row | {"started": int(execution.started), "running": int(execution.running)}


def _exec(row: dict[str, Any]) -> Exec:
    row["config"] = json.loads(row["config"])
    return Exec(**row | {"started": bool(row["started"]), "running": bool(row["running"])})


def _event_row(event: Event) -> dict[str, Any]:
    return {
        "time_ns": event.time_ns,
        "type": event.type,
        "action": event.action,
        "actor_id": event.actor_id,
        "attributes": json.dumps(dict(event.attributes)),
    }
