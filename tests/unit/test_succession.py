"""An older engine is replaced by one of the command's version, when it does nothing for anybody."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry import __version__, succession
from wherry.client import Client, EngineError
from wherry.osutil import is_alive, terminate
from wherry.osutil.pulse import Holder, read_holder
from wherry.paths import Home
from wherry.succession import Build, does_not_know, is_older

ROOT = Path(__file__).parents[2]
SOURCES = os.pathsep.join(str(ROOT / name) for name in ("host", "guest-agent", "vm-images"))
unix_only = pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets")


@pytest.mark.parametrize(
    ("engine", "ours", "older"),
    [
        ("0.1.0", "0.2.0", True),
        ("0.9.0", "0.10.0", True),
        ("1.0rc1", "1.0", True),
        ("1.0", "1.0.post1", True),
        ("1.0.dev3", "1.0rc1", True),
        ("0.2.0", "0.1.0", False),
        ("0.1.0", "0.1.0", False),
        ("nonsense", "0.1.0", True),
    ],
)
def test_versions_are_ordered(engine: str, ours: str, older: bool) -> None:
    assert is_older(Build(engine, 5), Build(ours)) is older


def test_the_same_version_installed_again_makes_an_engine_older_that_ran_before() -> None:
    ours = Build("1.0", since_ns=100)
    assert is_older(Build("1.0", 99), ours)
    assert not is_older(Build("1.0", 101), ours)
    assert not is_older(Build("1.1", 99), ours), "never back to an older version"


def test_a_route_that_an_engine_lacks_is_one_line_with_what_to_do() -> None:
    message, hint = does_not_know("page not found", "Wherry/0.0.1") or ("", None)
    assert "the running engine is 0.0.1" in message
    assert "wherry service restart" in str(hint)
    message, _ = does_not_know("POST is not allowed on /wherry/v1/new", "Wherry") or ("", None)
    assert "the running engine is of an older version" in message
    too_new = "client version 1.99 is too new. Maximum supported API version is 1.50"
    assert does_not_know(too_new, "Wherry/0.0.1") is not None
    message, hint = does_not_know("page not found", "Wherry/999.0") or ("", None)
    assert "is 999.0" in message
    assert "upgrade the command" in str(hint)


def test_what_is_not_there_in_this_version_either_stays_what_it_is() -> None:
    assert does_not_know("No such container: x", "Wherry/0.0.1") is None
    mine = f"Wherry/{__version__}"
    assert does_not_know("GET /networks is not implemented", mine) is None
    assert does_not_know("GET /networks is not implemented", "Wherry/0.0.1") is not None


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client of an engine that runs, in a home with a short path."""
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


def holder_of(client: Client) -> Holder:
    holder = read_holder(client.paths.engine_record)
    assert holder is not None
    return holder


def make_older(client: Client, version: str = "0.0.1") -> Holder:
    """Let the engine's record say that it is of an older version."""
    data = json.loads(client.paths.engine_record.read_bytes())
    data["version"] = version
    client.paths.engine_record.write_text(json.dumps(data))
    return holder_of(client)


@unix_only
def test_an_idle_older_engine_is_replaced_by_the_next_command(client: Client) -> None:
    older = make_older(client)
    newer = Client(client.home, "m")
    assert newer.request("GET", "/wherry/v1/engine").json()["version"] == __version__
    newer.close()
    assert holder_of(client).identity != older.identity
    assert holder_of(client).version == __version__
    assert not is_alive(older.identity)


@unix_only
def test_a_newer_engine_and_one_of_the_same_version_stay(client: Client) -> None:
    for version in (__version__, "999.0"):
        before = make_older(client, version)
        other = Client(client.home, "m")
        other.request("GET", "/_ping")
        other.close()
        assert holder_of(client).identity == before.identity


@unix_only
def test_an_engine_with_a_stream_stays_and_that_is_said(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(succession, "notice", said.append)
    older = make_older(client)
    with events_stream(client):
        other = Client(client.home, "m")
        other.request("GET", "/_ping")
        other.request("GET", "/_ping")
        other.close()
        assert holder_of(client).identity == older.identity
        assert len(said) == 1
        assert "older than this command" in said[0]
        assert "in the middle of GET /events" in said[0]
        with pytest.raises(EngineError, match="GET /events") as caught:
            other.replace_engine()
        assert "--force" in str(caught.value.hint)
        other.replace_engine(force=True)
        other.close()
        assert holder_of(client).identity != older.identity


@contextlib.contextmanager
def events_stream(client: Client) -> Iterator[None]:
    """Somebody follows the engine's events."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as follower:
        follower.settimeout(20)
        follower.connect(os.fspath(client.paths.api_socket))
        follower.sendall(b"GET /events HTTP/1.1\r\nHost: engine\r\n\r\n")
        assert follower.recv(4096).startswith(b"HTTP/1.1 200")
        yield


@unix_only
def test_connections_during_a_replacement_are_answered_by_the_new_engine(client: Client) -> None:
    other = Client(client.home, "m")
    other.replace_engine()
    started = time.monotonic()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plain:
        plain.settimeout(20)
        plain.connect(os.fspath(client.paths.api_socket))
        plain.sendall(b"GET /_ping HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")
        assert b"OK" in b"".join(iter(lambda: plain.recv(4096), b""))
    assert time.monotonic() - started < 20
    other.close()


@unix_only
def test_replacing_where_no_engine_runs_starts_one(client: Client) -> None:
    terminate(holder_of(client).identity)
    other = Client(client.home, "m")
    other.replace_engine()
    other.close()
    assert is_alive(holder_of(client).identity)
