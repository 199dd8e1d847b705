"""A hung engine is found by its heartbeat, ended and replaced; one that only takes long is not."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from wherry import hung
from wherry.client import Client
from wherry.errors import EngineUnreachable
from wherry.hung import EngineHung, Guard, Guarded
from wherry.osutil import identify, is_alive, pulse, terminate
from wherry.osutil.pulse import Pulse, Watch, read_holder
from wherry.paths import Home

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets and signals")

ROOT = Path(__file__).parents[2]
SOURCES = os.pathsep.join(str(ROOT / name) for name in ("host", "guest-agent", "vm-images"))
LONG_AGO = (1_000_000_000, 1_000_000_000)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client of an engine that runs, in a home with a short path; patience is short, too."""
    monkeypatch.setenv("PYTHONPATH", SOURCES)
    root = Path(tempfile.mkdtemp(prefix="wh-"))
    it = Client(Home(root), "m")
    it.request("GET", "/_ping")
    yield it
    it.close()
    holder = read_holder(it.paths.engine_record)
    if holder is not None:
        terminate(holder.identity)
    shutil.rmtree(root)


def hurry(monkeypatch: pytest.MonkeyPatch, patience: float = pulse.BEAT_SECONDS * 1.5) -> None:
    monkeypatch.setattr(pulse, "SHORT_PATIENCE_SECONDS", patience)
    monkeypatch.setattr(pulse, "PATIENCE_SECONDS", patience)
    monkeypatch.setattr(hung, "LOOK_SECONDS", 0.1)


def stopped_engine(client: Client) -> int:
    """The pid of the client's engine, which does not move any more."""
    holder = read_holder(client.paths.engine_record)
    assert holder is not None
    os.kill(holder.identity.pid, signal.SIGSTOP)
    return holder.identity.pid


def test_an_engine_that_hung_long_ago_is_replaced_once_before_anything_is_asked(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    hung_pid = stopped_engine(client)
    os.utime(client.paths.engine_record, LONG_AGO)
    client.close()
    pids: list[int] = []

    def order() -> None:
        other = Client(client.home, "m")
        create = partial(other.request, "POST", "/volumes/create", body={"Name": "vol"})
        try:
            reply = create()
        except EngineUnreachable:  # it had reached the old one in the moment before its end
            reply = create()
        assert reply.status == 201
        pids.append(int(client.paths.engine_lock.read_text()))
        other.close()

    threads = [threading.Thread(target=order) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(pids) == 3
    assert len(set(pids)) == 1
    assert identify(hung_pid) is None


def test_a_question_to_an_engine_that_hangs_now_is_asked_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    pid = stopped_engine(client)
    assert client.request("GET", "/_ping").status == 200
    assert identify(pid) is None


def test_an_order_to_an_engine_that_hangs_now_is_not_sent_twice(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch, 0.3)
    pid = stopped_engine(client)
    with pytest.raises(EngineHung, match="was hung and has been ended"):
        client.request("POST", "/volumes/create", body={"Name": "vol"})
    assert identify(pid) is None
    assert not client.running()


def test_an_answer_that_takes_long_is_waited_for_while_the_heart_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch, 0.3)
    paths = Home(tmp_path).machine("m")
    paths.root.mkdir(parents=True)
    own = Pulse(paths.engine_record, "1")
    own.beat()
    ours, theirs = socket.socketpair()
    until = time.monotonic() + 1.0

    def beat_then_answer() -> None:
        while time.monotonic() < until:
            own.beat()
            time.sleep(0.02)
        theirs.sendall(b"x")

    thread = threading.Thread(target=beat_then_answer)
    thread.start()
    with ours, theirs:
        Guard(paths, "m").wait_readable(ours)
        thread.join()
        assert time.monotonic() >= until


def test_whoever_listens_to_a_hung_engine_notices_by_itself(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    events = client.stream("GET", "/events")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        attached = Guarded(ours, Guard(client.paths, "m"))
        theirs.sendall(b"x")
        assert attached.recv(10) == b"x"
        pid = stopped_engine(client)
        with pytest.raises(EngineHung, match="was hung and has been ended"):
            attached.recv(10)
    with pytest.raises(EngineUnreachable):
        next(events)
    assert identify(pid) is None


def test_an_engine_of_a_version_without_a_heartbeat_is_left_alone(tmp_path: Path) -> None:
    guard = Guard(Home(tmp_path).machine("m"), "m")
    assert not guard.suspicious()
    assert Watch(tmp_path / "nothing").hung() is None


def test_a_beat_is_not_old_because_the_clock_was_set(tmp_path: Path) -> None:
    """A host that slept for an hour: the age alone tells nothing."""
    file = tmp_path / "engine.json"
    own = Pulse(file, "1")
    own.beat()
    os.utime(file, LONG_AGO)
    seconds = [0.0]
    watch = Watch(file, clock=lambda: seconds[0])
    seconds[0] = pulse.SHORT_PATIENCE_SECONDS - 0.1
    assert watch.hung() is None
    own.beat()
    seconds[0] += 1
    assert watch.hung() is None
    seconds[0] += pulse.SHORT_PATIENCE_SECONDS + 1
    assert watch.hung() is None
    seconds[0] += pulse.PATIENCE_SECONDS
    silent = watch.hung()
    assert silent is not None
    assert silent == identify(os.getpid())


def test_a_record_that_a_killed_engine_left_names_nobody(tmp_path: Path) -> None:
    file = tmp_path / "engine.json"
    file.write_text(
        '{"identity": {"pid": 1, "start_time": "never"}, "started_ns": 1, "version": ""}'
    )
    seconds = [0.0]
    watch = Watch(file, clock=lambda: seconds[0])
    seconds[0] = 1000
    assert watch.hung() is None
    holder = read_holder(file)
    assert holder is not None
    assert not is_alive(holder.identity)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"identity": 3}', "\0"])
def test_a_damaged_record_names_nobody(tmp_path: Path, text: str) -> None:
    file = tmp_path / "engine.json"
    file.write_text(text)
    assert read_holder(file) is None
