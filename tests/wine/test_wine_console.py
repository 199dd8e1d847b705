"""Consoles, and what goes wrong on Windows alone: told in one line, with the next step."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ROOT
from wine_console import COLUMNS, CTRL_C, ROWS, in_console
from wine_tier import Windows, windows_path

pytestmark = [pytest.mark.wine, pytest.mark.timeout(300)]

HERE = Path(__file__).parent

UNIT_TESTS = "osutil_console osutil_longpaths osutil_sparse osutil_winnames cli_windows"

STRANGER = """
import subprocess, sys
from wherry.osutil.pipes import create_instance
from wherry.paths import Home
held = create_instance(Home.default().machine("default").api_socket, first=True)
sys.exit(subprocess.run([sys.executable, "-m", "wherry", "ps"]).returncode)
"""
"""Has the engine's pipe, and says nothing."""

STOP = """
from wherry.client import Client
from wherry.paths import Home
Client(Home.default(), "default").request("POST", "/wherry/v1/engine/stop")
"""


@pytest.fixture
def home() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="wh-wine-"))
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers; its `host:port`."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_the_unit_tests_of_windows_pass_there(windows_python: Windows) -> None:
    files = [ROOT / "tests" / "unit" / f"test_{name}.py" for name in UNIT_TESTS.split()]
    options = ("-q", "-p", "no:cacheprovider", "-c", windows_path(ROOT / "pyproject.toml"))
    done = windows_python.run("-m", "pytest", *options, *map(windows_path, files), timeout=240)
    assert done.status == 0, done.stdout[-4000:] + done.stderr[-1000:]


def test_a_raw_console_gives_letters_of_every_kind_and_is_restored(
    windows_python: Windows,
) -> None:
    letters = "a\u00e9\u20ac\U0001f600q"
    with in_console(windows_python, windows_path(HERE / "in_wine_console.py")) as program:
        program.expect("ready")
        program.type(letters.encode())
        assert program.status() == 0
    assert f"size {ROWS} {COLUMNS}".encode() in program.said
    assert f"typed {letters.encode().hex()}".encode() in program.said
    assert "wrote \u20ac".encode() in program.said
    assert b"restored True True" in program.said


def test_ctrl_c_ends_commands_that_wait_and_leaves_the_engine(
    windows_python: Windows, home: Path, silent_server: str
) -> None:
    (home / "config.yml").write_text(f"debian_mirror: http://{silent_server}/debian\n")
    where = {"WHERRY_HOME": windows_path(home)}
    for words, sign in (
        (("pull", f"{silent_server}/nothing:1"), "Pulling"),
        (("machine", "start"), "download"),
    ):
        with in_console(windows_python, "-m", "wherry", *words, **where) as program:
            program.expect(sign)
            program.type(CTRL_C)
            assert program.status(20) == 130, program.said[-500:]
        assert b"Traceback" not in program.said
    windows_python.run("-c", STOP, **where).ok()


def test_a_drive_that_is_gone_is_told_in_one_line(windows_python: Windows) -> None:
    done = windows_python.run("-m", "wherry", "ps", WHERRY_HOME="Q:\\wherry")
    assert done.status == 1
    assert "there is no drive Q:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pipe_that_somebody_else_serves_is_told_in_one_line(
    windows_python: Windows, home: Path
) -> None:
    done = windows_python.run("-c", STRANGER, WHERRY_HOME=windows_path(home))
    assert done.status == 1
    assert "is in use by a program that is no engine" in done.stderr
    assert "Traceback" not in done.stderr
