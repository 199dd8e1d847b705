"""SQLite on disks that fail: what a person can do, and a database that can only be read."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wherry.osutil.files import DENIED_HINT, FULL_HINT
from wherry.osutil.reserve import Reserve, is_full
from wherry.osutil.walcopy import read_copy

log = logging.getLogger(__name__)

_HINTS = {
    sqlite3.SQLITE_FULL: FULL_HINT,
    sqlite3.SQLITE_READONLY: "it cannot be written: wherry doctor checks owner and permissions",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: wherry doctor checks owner and permissions",
    sqlite3.SQLITE_PERM: "it cannot be used: wherry doctor checks owner and permissions",
    sqlite3.SQLITE_IOERR: "the disk failed, or it is full: look into the system's log",
    sqlite3.SQLITE_BUSY: "another program keeps it locked",
}
"""By primary result code (sqlite.org/rescode.html); an extended one has it in its low byte."""

_CANNOT_WRITE = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_IOERR,
    }
)


def database_hint(error: sqlite3.Error, path: Path | None = None) -> str | None:
    """None where the error is not the disk's. `path`: of the database; its disk is looked at."""
    code = _code(error)
    if path is not None and code in _CANNOT_WRITE:
        if is_full(path.parent):
            return FULL_HINT
        if not os.access(path.parent, os.W_OK):  # false on a read-only file system, also for root
            return DENIED_HINT
    return None if code is None else _HINTS.get(code)


def cannot_write(error: sqlite3.Error) -> bool:
    """Whether the database may be sound, and only its disk takes nothing."""
    return _code(error) in _CANNOT_WRITE


class Database:
    """An open database; where its disk takes nothing, a copy in memory that can only be read.

    Args:
        connect: opens and migrates it.
        migrate: does the latter with a copy.

    Attributes:
        connection: of now; another one once a copy gives way to the file.

    Raises:
        sqlite3.Error: as from `connect`.
    """

    def __init__(
        self,
        path: Path,
        connect: Callable[[], sqlite3.Connection],
        migrate: Callable[[sqlite3.Connection], None],
    ) -> None:
        self._path = path
        self._connect = connect
        self.connection, self._refused = _open_or_copy(path, connect, migrate)
        self._pretends = False
        if self._refused is not None:
            log.warning("%s can only be read: %s", path, self._refused)

    def close(self) -> None:
        self.connection.close()

    def writable(self) -> sqlite3.Connection:
        """The connection for a change. Where there is a copy, the file is opened again first: it
        has all that the copy has. Raises sqlite3.Error."""
        if self._refused is not None and not self._pretends:
            connection = self._connect()
            self.connection.close()
            self.connection, self._refused = connection, None
            log.info("%s can be written again", self._path)
        return self.connection

    @contextmanager
    def pretending(self) -> Iterator[None]:
        """Meanwhile a copy takes changes, so that what is read is true; they are lost. For what the
        next process finds out again by itself. Without a copy it is as always."""
        self._pretends = self._refused is not None
        try:
            if self._pretends:
                self.connection.execute("PRAGMA query_only = OFF")
            yield
        finally:
            if self._pretends:
                self.connection.execute("PRAGMA query_only = ON")
            self._pretends = False


def _open_or_copy(
    path: Path,
    connect: Callable[[], sqlite3.Connection],
    migrate: Callable[[sqlite3.Connection], None],
) -> tuple[sqlite3.Connection, sqlite3.Error | None]:
    """The connection, with the help of the reserve where there must be; and why nothing can be
    written: then it is a copy in memory that refuses."""
    try:
        return connect(), None
    except sqlite3.Error as error:
        if not cannot_write(error):
            raise
        refused = error
    if Reserve(path.parent).release_when_full():
        try:
            return connect(), None
        except sqlite3.Error as error:
            refused = error
    try:
        copy = read_copy(path)
    except (OSError, sqlite3.Error):
        raise refused from None
    try:
        migrate(copy)
        copy.execute("PRAGMA query_only = ON")
    except BaseException:
        copy.close()
        raise
    return copy, refused


def _code(error: sqlite3.Error) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)  # errors of the module itself have none
    return None if code is None else int(code) & 0xFF
