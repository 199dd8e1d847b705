"""The engine process: it serves, excludes a second one, and ends cleanly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wherry.engine.__main__ import main
from wherry.osutil import listen_unix, private_directory
from wherry.paths import Home

ROOT = Path(__file__).parents[2]
SOURCES = os.pathsep.join(str(ROOT / name) for name in ("host", "guest-agent", "vm-images"))

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets and signals")


@contextmanager
def engine_process(home: Home) -> Iterator[subprocess.Popen[bytes]]:
    """An engine that has inherited its listener, as the command line starts it."""
    paths = home.machine("m")
    private_directory(paths.root)
    private_directory(paths.sockets)
    environment = {**os.environ, "WHERRY_HOME": str(home.root), "PYTHONPATH": SOURCES}
    with paths.engine_log.open("ab") as log, listen_unix(paths.api_socket) as listener:
        process = subprocess.Popen(
            [sys.executable, "-m", "wherry.engine", "--machine", "m", "--inherited"],
            stdin=listener.fileno(),
            stdout=log,
            stderr=log,
            env=environment,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ping(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(30)
        client.connect(os.fspath(path))
        client.sendall(b"GET /_ping HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: client.recv(4096), b""))


def test_it_serves_until_a_signal_and_ends_cleanly(tmp_path: Path) -> None:
    home = Home(tmp_path)
    paths = home.machine("m")
    with engine_process(home) as process:
        assert ping(paths.api_socket).startswith(b"HTTP/1.1 200")
        assert paths.engine_lock.read_text().strip() == str(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    log = paths.engine_log.read_text()
    assert "Traceback" not in log
    assert log.rstrip().endswith("engine of machine m ends")
    assert not paths.qemu_record.exists()


def test_an_engine_whose_socket_was_removed_makes_room_for_the_next_one(tmp_path: Path) -> None:
    home = Home(tmp_path)
    paths = home.machine("m")
    with engine_process(home) as lost:
        assert ping(paths.api_socket).startswith(b"HTTP/1.1 200")
        paths.api_socket.unlink()  # as a cleaner of temporary files does
        with engine_process(home) as found:
            assert ping(paths.api_socket).startswith(b"HTTP/1.1 200")
            assert lost.wait(timeout=30) == 0
            assert found.poll() is None
    assert "its socket is gone" in paths.engine_log.read_text()


def test_a_second_engine_of_a_machine_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home(tmp_path)
    with engine_process(home) as process:
        ping(home.machine("m").api_socket)
        monkeypatch.setenv("WHERRY_HOME", str(tmp_path))
        monkeypatch.setattr("wherry.engine.daemon.LOCK_SECONDS", 0.05)
        monkeypatch.setattr("wherry.engine.__main__.start_logging", lambda _path: None)
        assert main(["--machine", "m"]) == 1
        assert f"is locked by process {process.pid}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../x", "", "a/b"])
def test_a_machine_name_that_is_no_name_is_an_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    monkeypatch.setenv("WHERRY_HOME", str(tmp_path / "home"))
    assert main(["--machine", name]) == 1
    assert "name" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()
