from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from wherry.errors import StorageError
from wherry.images.store_db import MIGRATIONS, ImageRow, StoreDb
from wherry.osutil.files import FULL_HINT


def row(number: int) -> ImageRow:
    name = f"sha256:{number:064x}"
    return ImageRow(name, name, name, 1, "linux", "amd64", "", number, 1, b"{}")


def add(db: StoreDb, number: int, objects: list[str], tag: str | None = None) -> str:
    db.lease("pull", ["manifest", *objects], 60.0)
    assert db.add_image(row(number), [], objects, tag, None, holder="pull")
    return row(number).id


@pytest.fixture
def db(tmp_path: Path) -> StoreDb:
    return StoreDb(tmp_path / "store.db")


def test_commits_survive_a_power_failure_by_their_settings(db: StoreDb) -> None:
    assert db.rows("PRAGMA journal_mode") == [("wal",)]
    assert db.rows("PRAGMA synchronous") == [(2,)]  # FULL
    assert db.rows("PRAGMA user_version") == [(len(MIGRATIONS),)]


def test_a_database_of_a_newer_wherry_is_not_touched(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StorageError, match="newer Wherry") as caught:
        StoreDb(tmp_path / "store.db")
    assert caught.value.hint is not None and "upgrade" in caught.value.hint


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError, match=r"store\.db: file is not a database"):
        StoreDb(tmp_path / "store.db")


def test_objects_go_with_their_last_image(db: StoreDb) -> None:
    one = add(db, 1, ["a", "shared"])
    two = add(db, 2, ["b", "shared"])
    assert db.collect(lambda _: True) == []
    db.remove_image(one)
    assert db.collect(lambda _: True) == ["a"]
    db.remove_image(two)
    assert sorted(db.collect(lambda _: True)) == ["b", "shared"]


def test_an_image_whose_lease_somebody_ended_is_not_stored(db: StoreDb) -> None:
    assert not db.add_image(row(1), [], ["a"], "t", None, holder="pull")
    assert db.images() == []
    assert db.names() == ({}, {})


def test_leases_keep_objects_until_they_are_released_or_expire(db: StoreDb) -> None:
    image = add(db, 1, ["a", "b", "c"])
    db.lease("for ever", ["a"], None)
    db.lease("an hour", ["b"], 3600.0)
    db.lease("over", ["c"], -1.0)
    db.remove_image(image)
    assert db.collect(lambda _: True) == ["c"]
    db.release("an hour")
    assert db.collect(lambda _: True) == ["b"]
    assert db.lease_holders() == ["for ever"]


def test_what_cannot_be_removed_is_tried_again(db: StoreDb) -> None:
    db.remove_image(add(db, 1, ["a", "b"]))
    assert db.collect(lambda name: name == "b") == ["b"]
    assert db.collect(lambda _: True) == ["a"]
    assert db.collect(lambda _: True) == []


def test_an_object_that_is_needed_again_is_no_garbage(db: StoreDb) -> None:
    db.remove_image(add(db, 1, ["a"]))
    add(db, 2, ["a"])
    assert db.collect(lambda _: True) == []


def test_every_move_of_a_tag_is_logged(db: StoreDb) -> None:
    before = time.time_ns()
    one = add(db, 1, [], "t")
    two = add(db, 2, [], "t")
    db.set_tag("t", two)
    db.remove_names(["t"], [])
    log = db.rows("SELECT name, old_id, new_id FROM tag_log ORDER BY seq")
    assert log == [("t", None, one), ("t", one, two), ("t", two, None)]
    assert all(int(str(it[0])) >= before for it in db.rows("SELECT time_ns FROM tag_log"))


def test_removing_an_image_logs_its_tags(db: StoreDb) -> None:
    one = add(db, 1, [], "t")
    db.remove_image(one)
    assert db.rows("SELECT new_id FROM tag_log ORDER BY seq") == [(one,), (None,)]
    assert db.names() == ({}, {})


def test_a_failed_transaction_changes_nothing(db: StoreDb) -> None:
    with pytest.raises(KeyError), db.write() as connection:
        connection.execute("INSERT INTO garbage VALUES ('x')")
        raise KeyError
    assert db.rows("SELECT * FROM garbage") == []


def test_the_index_is_exported_only_after_changes(db: StoreDb) -> None:
    exports: list[int] = []
    db.export(lambda: exports.append(0))
    db.export(lambda: exports.append(0))
    one = add(db, 1, [], "t")
    db.export(lambda: exports.append(1))
    db.set_tag("t", one)
    db.export(lambda: exports.append(2))
    assert exports == [0, 1]


def test_ids_are_found_by_their_beginning(db: StoreDb) -> None:
    ids = [add(db, number, []) for number in (0xA0, 0xA1, 0xB0)]
    assert db.ids_starting(ids[0][:-1]) == ids[:2]
    assert db.ids_starting(ids[2][:-1]) == ids[2:]
    assert db.ids_starting(ids[0]) == [ids[0]]
    assert db.ids_starting("sha256:f") == []


def test_a_full_disk_is_said_with_what_to_do_and_changes_nothing(db: StoreDb) -> None:
    ((pages,),) = db.rows("PRAGMA page_count")
    db.rows(f"PRAGMA max_page_count = {pages}")  # SQLITE_FULL, as a full disk
    with pytest.raises(StorageError, match="full") as caught, db.write() as connection:
        connection.execute("CREATE TABLE large AS SELECT randomblob(200000)")
    assert caught.value.hint == FULL_HINT
    db.rows("PRAGMA max_page_count = 10000")
    assert db.rows("SELECT name FROM sqlite_master WHERE name = 'large'") == []
    add(db, 1, ["a"], "one")
    assert len(db.images()) == 1
