"""What a person can do about an error of SQLite's: most tell of the disk below the file."""

from __future__ import annotations

import sqlite3

_HINTS = {
    sqlite3.SQLITE_FULL: "the disk is full: make room on it",
    sqlite3.SQLITE_READONLY: "it cannot be written: wherry doctor checks owner and permissions",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: wherry doctor checks owner and permissions",
    sqlite3.SQLITE_PERM: "it cannot be used: wherry doctor checks owner and permissions",
    sqlite3.SQLITE_IOERR: "the disk failed, or it is full: look into the system's log",
    sqlite3.SQLITE_BUSY: "another program keeps it locked",
}
"""By primary result code (sqlite.org/rescode.html); an extended one has it in its low byte."""


def database_hint(error: sqlite3.Error) -> str | None:
    """None where the error is not the disk's."""
    code = getattr(error, "sqlite_errorcode", None)  # errors of the module itself have none
    return None if code is None else _HINTS.get(code & 0xFF)
