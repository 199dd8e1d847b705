"""Databases on a disk that takes nothing: read in memory, written with the help of a reserve."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.osutil import reserve
from wherry.osutil.databases import Database
from wherry.osutil.reserve import Reserve
from wherry.osutil.walcopy import read_copy, with_log

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The free bytes of every disk: the last item."""
    found = [1 << 30]
    monkeypatch.setattr(reserve.shutil, "disk_usage", lambda _path: Usage(1 << 40, 0, found[-1]))
    yield found


def write_ahead(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    return connection


def rows(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    return connection.execute("SELECT * FROM t ORDER BY 1, 2").fetchall()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), st.integers(0, 20), st.integers(0, 9000)),
        st.tuples(st.just("delete"), st.integers(0, 20), st.just(0)),
        st.tuples(st.sampled_from(["checkpoint", "vacuum"]), st.just(0), st.just(0)),
    ),
    max_size=12,
)


@given(steps=STEPS, page_size=st.sampled_from([512, 4096, 65536]))
def test_a_copy_has_what_is_committed_whatever_is_in_the_log(
    steps: list[tuple[str, int, int]], page_size: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "db")
        with sqlite3.connect(path) as first:
            first.execute(f"PRAGMA page_size = {page_size}")
        first.close()
        connection = write_ahead(path)
        connection.execute("CREATE TABLE t (a INTEGER, b BLOB)")
        for step, number, size in steps:
            if step == "insert":
                connection.execute("INSERT INTO t VALUES (?, ?)", (number, os.urandom(size)))
            elif step == "delete":
                connection.execute("DELETE FROM t WHERE a = ?", (number,))
            elif step == "checkpoint":
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            else:
                connection.execute("VACUUM")
        expected = rows(connection)
        connection.execute("BEGIN")
        connection.execute("INSERT INTO t VALUES (99, zeroblob(90000))")  # is not committed
        copy = read_copy(path)
        try:
            assert rows(copy) == expected
            assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        finally:
            copy.close()
            connection.close()


@given(cut=st.integers(0, 20_000), flip=st.integers(0, 19_999))
def test_a_log_that_was_not_written_whole_counts_up_to_its_last_whole_transaction(
    cut: int, flip: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "db")
        connection = write_ahead(path)
        connection.execute("CREATE TABLE t (a INTEGER, b BLOB)")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for number in range(4):
            connection.execute("INSERT INTO t VALUES (?, zeroblob(10))", (number,))
        database = path.read_bytes()
        log = bytearray(Path(directory, "db-wal").read_bytes())
        connection.close()
    log[flip % len(log)] ^= 0x55
    content = with_log(database, bytes(log[:cut]))
    copy = sqlite3.connect(":memory:")
    copy.deserialize(content)
    found = [row[0] for row in rows(copy)]
    copy.close()
    assert found == list(range(len(found)))


def test_a_reserve_is_made_where_there_is_room_and_given_up_when_there_is_none(
    tmp_path: Path, free: list[int]
) -> None:
    mine = Reserve(tmp_path)
    free.append(reserve.ROOM)
    mine.fill()
    assert not (tmp_path / reserve.NAME).exists()
    free.append(1 << 30)
    mine.fill()
    assert (tmp_path / reserve.NAME).stat().st_size == reserve.SIZE
    assert not mine.release_when_full()
    free.append(0)
    assert mine.release_when_full()
    assert not mine.release_when_full()
    assert list(tmp_path.iterdir()) == []


def connect_to(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("CREATE TABLE IF NOT EXISTS t (a, b)")
    return connection


def refused() -> sqlite3.OperationalError:
    """As SQLite says that its files cannot be made."""
    with pytest.raises(sqlite3.OperationalError) as caught:
        sqlite3.connect("/nowhere/there/is/none")
    return caught.value


def test_a_database_is_opened_in_the_room_that_the_reserve_had(
    tmp_path: Path, free: list[int]
) -> None:
    Reserve(tmp_path).fill()
    free.append(0)

    def connect() -> sqlite3.Connection:
        if (tmp_path / reserve.NAME).exists():
            raise refused()
        return connect_to(tmp_path / "db")

    database = Database(tmp_path / "db", connect, lambda _connection: None)
    database.writable().execute("INSERT INTO t VALUES (1, 2)")
    database.close()


def test_without_a_reserve_a_database_can_be_read_and_nothing_else(
    tmp_path: Path, free: list[int]
) -> None:
    connect_to(tmp_path / "db").close()
    free.append(0)
    reason = refused()

    def connect() -> sqlite3.Connection:
        raise reason

    database = Database(tmp_path / "db", connect, lambda _connection: None)
    assert rows(database.connection) == []
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        database.connection.execute("INSERT INTO t VALUES (1, 2)")
    with pytest.raises(sqlite3.OperationalError) as caught:
        database.writable()
    assert caught.value is reason
    database.close()


def test_a_copy_gives_way_to_the_file_once_that_can_be_written(
    tmp_path: Path, free: list[int]
) -> None:
    connect_to(tmp_path / "db").close()
    free.append(0)
    reasons = [refused()]

    def connect() -> sqlite3.Connection:
        if reasons:
            raise reasons[0]
        return connect_to(tmp_path / "db")

    database = Database(tmp_path / "db", connect, lambda _connection: None)
    with database.pretending():
        database.writable().execute("INSERT INTO t VALUES (1, 2)")
    assert rows(database.connection) == [(1, 2)]
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        database.connection.execute("INSERT INTO t VALUES (3, 4)")
    reasons.clear()
    database.writable().execute("INSERT INTO t VALUES (5, 6)")
    assert rows(database.connection) == [(5, 6)]
    database.close()


def test_what_is_no_database_is_not_read_as_one(tmp_path: Path, free: list[int]) -> None:
    reason = refused()

    def connect() -> sqlite3.Connection:
        raise reason

    for content in (None, b"no database" * 100):
        if content is not None:
            (tmp_path / "db").write_bytes(content)
        with pytest.raises(sqlite3.OperationalError) as caught:
            Database(tmp_path / "db", connect, lambda _connection: None)
        assert caught.value is reason
