"""A SQLite database in WAL mode, read without writing: where SQLite itself cannot open it.

SQLite makes two files beside a database to read it, which a full disk or a read-only directory
refuses. Here the committed frames of the write-ahead log are laid over the database's pages, in
memory. Pure but for `read_copy`. The format: sqlite.org/fileformat2.html, section 4.
"""

from __future__ import annotations

import sqlite3
import struct
from pathlib import Path

_WAL_HEADER = struct.Struct(">8I")
"""Magic, version, page size, checkpoint number, two salts, two checksums."""
_FRAME_HEADER = struct.Struct(">6I")
"""Page number, pages of the database after a commit (else 0), two salts, two checksums."""
_MAGIC = 0x377F0682
"""Its last bit: the words that are summed up are big-endian."""
_VERSION = 3007000
_FORMAT_VERSIONS = slice(18, 20)
"""Of the database's header, how it is written and read: 2 with a write-ahead log, 1 without."""
_TRIES = 5


def read_copy(path: Path) -> sqlite3.Connection:
    """A connection to a copy in memory of what is committed. Usable in any thread.

    Raises:
        OSError: the file cannot be read.
        sqlite3.Error: it is no database.
    """
    content = b""
    for _ in range(_TRIES):
        log = _bytes_of(path.with_name(path.name + "-wal"))
        content = with_log(path.read_bytes(), log)
        if _bytes_of(path.with_name(path.name + "-wal")) == log:
            break  # else somebody has written meanwhile
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        connection.deserialize(content)
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def with_log(database: bytes, log: bytes) -> bytes:
    """The database after all transactions that its log has whole, as one without a log."""
    pages, page_size, count = _committed(log)
    content = bytearray(database)
    if count:
        content = content[: count * page_size].ljust(count * page_size, b"\0")
        for number, page in pages.items():
            if number <= count:
                content[(number - 1) * page_size : number * page_size] = page
    if len(content) >= _FORMAT_VERSIONS.stop:
        content[_FORMAT_VERSIONS] = b"\1\1"
    return bytes(content)


def _committed(log: bytes) -> tuple[dict[int, bytes], int, int]:
    """The newest page of each number, their size, and how many the database has; 0: as before."""
    committed: dict[int, bytes] = {}
    count = 0
    if len(log) < _WAL_HEADER.size:
        return committed, 0, 0
    magic, version, page_size, _, *rest = _WAL_HEADER.unpack_from(log)
    salts, told = (rest[0], rest[1]), (rest[2], rest[3])
    order = ">" if magic & 1 else "<"
    sums = _checksum(order, log[: _WAL_HEADER.size - 8], (0, 0))
    if magic & ~1 != _MAGIC or version != _VERSION or sums != told or not page_size:
        return committed, 0, 0
    pending: dict[int, bytes] = {}
    position = _WAL_HEADER.size
    while position + _FRAME_HEADER.size + page_size <= len(log):
        number, size, *rest = _FRAME_HEADER.unpack_from(log, position)
        page = log[position + _FRAME_HEADER.size : position + _FRAME_HEADER.size + page_size]
        sums = _checksum(order, log[position : position + 8] + page, sums)
        if (rest[0], rest[1]) != salts or (rest[2], rest[3]) != sums:
            break  # a frame of an earlier round, or one that was not written whole
        pending[number] = page
        if size:
            committed |= pending
            pending = {}
            count = size
        position += _FRAME_HEADER.size + page_size
    return committed, page_size, count


def _checksum(order: str, data: bytes, start: tuple[int, int]) -> tuple[int, int]:
    """Section 4.2: two sums over the 32-bit words, each carried into the other."""
    one, two = start
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
