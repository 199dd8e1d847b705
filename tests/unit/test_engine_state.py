"""state.db: what was committed is there; migrations; events kept and followed."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import pytest

from wherry.engine import state as state_module
from wherry.engine.events import EventBus, matches
from wherry.engine.model import Container, Event, Exec, Status
from wherry.engine.state import State, migrate
from wherry.errors import InvalidInput, StorageError
from wherry.osutil.files import FULL_HINT


def container(name: str = "web") -> Container:
    return Container(
        id=name.encode().hex().ljust(64, "0"),
        name=name,
        created_ns=1,
        image="busybox",
        image_id="sha256:1",
        manifest_digest="sha256:2",
        config={"Cmd": ["sh"], "Labels": {"a": "b"}},
        host_config={"Memory": 1},
        layers=("sha256:a", "sha256:b"),
    )


def event(number: int, action: str = "start", **attributes: str) -> Event:
    return Event("container", action, f"id{number}", number, attributes)


def test_containers_and_execs_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    made = container()
    execution = Exec("e" * 64, made.id, 2, {"Cmd": ["x"]}, started=True, exit_code=3)
    changed = replace(
        made,
        status=Status.EXITED,
        exit_code=3,
        error="e",
        oom_killed=True,
        started_ns=5,
        finished_ns=6,
        log_bytes=None,
    )
    state = State.open(tmp_path / "state.db")
    with state.transaction() as transaction:
        transaction.add_container(made)
        transaction.save_exec(execution)
    with state.transaction() as transaction:
        transaction.update_container(changed)
    state.close()
    again = State.open(tmp_path / "state.db")
    assert again.containers() == [changed]
    assert again.execs() == [execution]
    with again.transaction() as transaction:
        transaction.delete_container(made.id)
    assert (again.containers(), again.execs(), again.removals()) == ([], [], [made.id])
    again.close()


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state.db")
    with pytest.raises(RuntimeError), state.transaction() as transaction:
        transaction.add_container(container())
        transaction.add_event(event(1))
        raise RuntimeError("in the middle")
    assert state.containers() == []
    assert state.last_event() == 0
    with pytest.raises(StorageError), state.transaction() as transaction:
        transaction.add_container(container())
        transaction.add_container(container())
    assert state.containers() == []
    state.close()


def test_every_commit_is_durable(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state.db")
    pragma = {
        name: state._connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "foreign_keys")
    }
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    state.close()


def test_migrations_go_forward_step_by_step() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    first = "CREATE TABLE t (a INTEGER); INSERT INTO t VALUES (1);"
    second = "ALTER TABLE t ADD COLUMN b INTEGER DEFAULT 2;"
    migrate(connection, (first,))
    migrate(connection, (first, second))
    migrate(connection, (first, second))
    assert connection.execute("SELECT a, b FROM t").fetchall() == [(1, 2)]
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    with pytest.raises(StorageError, match="version 2"):
        migrate(connection, (first,))
    with pytest.raises(sqlite3.Error):
        migrate(connection, (first, second, "INSERT INTO t VALUES (9, 9); NONSENSE;"))
    connection.rollback()
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (1,)
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"not a database, but long enough to look like a file of one" * 20)
    with pytest.raises(StorageError, match="cannot open"):
        State.open(path)


def test_old_events_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "KEEP_EVENTS", 20)
    monkeypatch.setattr(state_module, "_PRUNE_EVERY", 5)
    state = State.open(tmp_path / "state.db")
    for number in range(100):
        with state.transaction() as transaction:
            transaction.add_event(event(number))
    kept = state.events_after(0)
    assert 20 <= len(kept) < 30
    assert kept[-1].time_ns == 99
    state.close()


def test_stored_and_live_events_in_order(tmp_path: Path) -> None:
    async def scene() -> None:
        state = State.open(tmp_path / "state.db")
        bus = EventBus(state)
        now = time.time_ns()
        bus.publish(replace(event(1, "create"), time_ns=now - 10))
        live = bus.subscribe()
        everything = bus.subscribe(since_ns=now - 10)
        only_new = bus.subscribe(since_ns=now)
        bus.publish_late(replace(event(2, "attach"), time_ns=now + 1))
        with bus.transaction() as transaction:
            transaction.add_event(replace(event(3, "start"), time_ns=now + 2))
        for subscription, actions in (
            (live, ["attach", "start"]),
            (everything, ["create", "attach", "start"]),
            (only_new, ["attach", "start"]),
        ):
            assert [(await anext(subscription)).action for _ in actions] == actions
        waiting = asyncio.ensure_future(anext(live))
        await asyncio.sleep(0)
        bus.publish(event(4, "die"))
        assert (await waiting).action == "die"
        bus.close()
        with pytest.raises(StopAsyncIteration):
            await anext(live)
        state.close()

    asyncio.run(scene())


def test_late_events_are_stored_by_themselves_too(tmp_path: Path) -> None:
    async def scene() -> None:
        state = State.open(tmp_path / "state.db")
        bus = EventBus(state)
        live = bus.subscribe()
        bus.publish_late(event(1, "resize"))
        async with asyncio.timeout(5):
            assert (await anext(live)).action == "resize"
        state.close()

    asyncio.run(scene())


def test_until_ends_a_subscription(tmp_path: Path) -> None:
    async def scene() -> None:
        state = State.open(tmp_path / "state.db")
        bus = EventBus(state)
        for number in (1, 2, 3):
            bus.publish(event(number))
        assert [it.time_ns async for it in bus.subscribe(since_ns=1, until_ns=2)] == [1, 2]
        soon = time.time_ns() + 20_000_000
        assert [it async for it in bus.subscribe(until_ns=soon)] == []
        state.close()

    asyncio.run(scene())


def test_event_filters() -> None:
    start = event(1, "start", image="busybox:1.36", name="web", color="red")
    command = event(1, "exec_create: ls -l")
    pull = Event("image", "pull", "busybox:latest", 1, {"name": "busybox:latest"})
    assert matches(start, {"type": ["container"], "event": ["die", "start"]})
    assert not matches(start, {"type": ["image"]})
    assert matches(start, {"container": ["web"]})
    assert matches(start, {"container": ["id1"]})
    assert not matches(start, {"container": ["db"]})
    assert matches(start, {"image": ["busybox"]})
    assert matches(start, {"label": ["color=red", "name"]})
    assert not matches(start, {"label": ["color=blue"]})
    assert matches(command, {"event": ["exec_create"]})
    assert matches(pull, {"image": ["busybox:latest"]})
    assert not matches(pull, {"container": ["busybox:latest"]})


def test_an_unknown_filter_is_an_error(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state.db")
    with pytest.raises(InvalidInput, match="invalid filter 'moon'"):
        EventBus(state).subscribe(filters={"moon": ["full"]})
    state.close()


def test_an_event_has_dockers_shape() -> None:
    shape = replace(event(1_500_000_000, "start", image="busybox", name="web"), seq=7).as_json()
    assert shape == {
        "Type": "container",
        "Action": "start",
        "Actor": {"ID": "id1500000000", "Attributes": {"image": "busybox", "name": "web"}},
        "scope": "local",
        "time": 1,
        "timeNano": 1_500_000_000,
        "status": "start",
        "id": "id1500000000",
        "from": "busybox",
    }


def test_a_full_disk_is_said_with_what_to_do_and_changes_nothing(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state.db")
    (pages,) = state._connection.execute("PRAGMA page_count").fetchone()
    state._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLITE_FULL, as a full disk
    with pytest.raises(StorageError, match="full") as caught, state.transaction() as transaction:
        transaction.add_container(replace(container(), config={"Labels": {"a": "x" * 100_000}}))
    assert caught.value.hint == FULL_HINT
    state._connection.execute("PRAGMA max_page_count = 10000")
    assert state.containers() == []
    with state.transaction() as transaction:
        transaction.add_container(container())
    assert state.containers() == [container()]
