"""Containers on Windows, from a pull to the engine's death: one machine, one story in order."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from registry import RunningRegistry
from waiting import eventually
from wine_console import COLUMNS, CTRL_C, ROWS, ConsoleProgram, in_console
from wine_tier import Finished, Windows, windows_path

pytestmark = [pytest.mark.wine, pytest.mark.timeout(300)]

HERE = Path(__file__).parent

DIAL = """
busybox nsenter -t 1 -m -- /usr/sbin/nft flush ruleset || exit 9
for port in "$@"; do busybox nc -w 5 10.0.2.2 $port </dev/null 2>/dev/null & done
wait
"""
"""In the guest, by its root, who can lift its own rules: 10.0.2.2 is the host's loopback there."""

EXAMINE = """
from wherry.doctor import processes
from wherry.doctor.finding import Context
from wherry.paths import Home
from wherry.settings import Settings
context = Context(Home.default(), Settings(), ("default",))
for check in (processes.engines, processes.machines):
    for finding in check(context):
        print(finding.status.value, finding.detail.partition(" (")[0].split()[-1])
"""


class WindowsWherry:
    def __init__(self, windows: Windows, home: Path) -> None:
        self.windows = windows
        self.home = home

    def python(self, *arguments: str, input: bytes = b"", timeout: float = 60) -> Finished:
        home = windows_path(self.home)
        return self.windows.run(*arguments, input=input, timeout=timeout, WHERRY_HOME=home)

    def run(self, *arguments: str, input: bytes = b"", timeout: float = 60) -> Finished:
        return self.python("-m", "wherry", *arguments, input=input, timeout=timeout)

    def console(self, *arguments: str) -> AbstractContextManager[ConsoleProgram]:
        home = windows_path(self.home)
        return in_console(self.windows, "-m", "wherry", *arguments, WHERRY_HOME=home)

    def out(self, *arguments: str, input: bytes = b"", timeout: float = 60) -> str:
        return self.run(*arguments, input=input, timeout=timeout).ok()


@pytest.fixture(scope="module")
def machine(windows_python: Windows, windows_home: Path) -> Iterator[WindowsWherry]:
    wherry = WindowsWherry(windows_python, windows_home)
    wherry.out("machine", "start", timeout=200)
    yield wherry
    wherry.run("machine", "rm", "--force", timeout=60)


def test_a_container_runs(machine: WindowsWherry) -> None:
    assert machine.out("run", "--rm", "localhost/busybox", "uname", "-s") == "Linux"


def test_standard_input_ends_the_container(machine: WindowsWherry) -> None:
    words = ("run", "-i", "--rm", "localhost/busybox", "wc", "-c")
    assert machine.out(*words, input=b"x" * 300_000) == "300000"


def test_an_image_is_pulled_and_started(
    machine: WindowsWherry, registry: RunningRegistry, tmp_path: Path
) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "greeting").write_text("pulled\n")
    name = registry.push_rootfs(tmp_path / "root", "wine/greeting:1")
    machine.out("pull", name)
    assert "wine/greeting" in machine.out("images")


def test_exec_has_standard_input_logs_and_stop_work(machine: WindowsWherry) -> None:
    script = "echo begun; trap 'exit 7' TERM; while :; do sleep 0.1; done"
    machine.out("run", "-d", "--name", "long", "localhost/busybox", "sh", "-c", script)
    assert machine.out("exec", "-i", "long", "cat", input=b"typed") == "typed"
    assert machine.out("logs", "long") == "begun"
    machine.out("stop", "long")
    assert machine.out("wait", "long") == "7"
    machine.out("rm", "long")


def test_a_terminal_reaches_the_container_with_letters_of_every_kind(
    machine: WindowsWherry,
) -> None:
    with machine.console("run", "-it", "--rm", "localhost/busybox", "sh") as program:
        program.expect("# ")
        program.type("stty size; echo \u00e9\u20ac | od -t x1 -A n; exit 3\r".encode())
        assert program.status() == 3
    assert f"{ROWS} {COLUMNS}".encode() in program.said
    assert b"c3 a9 e2 82 ac 0a" in program.said


def test_ctrl_c_reaches_the_container(machine: WindowsWherry) -> None:
    script = "trap 'echo heard; exit 9' INT; echo begun; while :; do sleep 0.1; done"
    with machine.console("run", "--rm", "localhost/busybox", "sh", "-c", script) as program:
        program.expect("begun")
        program.type(CTRL_C)
        assert program.status() == 9
    assert b"heard" in program.said


def test_docker_py_works_through_the_pipe(machine: WindowsWherry) -> None:
    said = machine.python(windows_path(HERE / "in_wine_docker.py"), timeout=90).ok()
    assert said.splitlines() == ["linux", "hello", "0", "through the pipe"]


def test_no_port_is_open_while_the_machine_runs(machine: WindowsWherry) -> None:
    """Neither QEMU's nor the keeper's: there is nothing for a guest or a stranger to reach."""
    listening = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":  # TCP_LISTEN
            listening.add(int(fields[1].split(":")[1], 16))
    plan = json.loads((machine.home / "machines" / "default" / "qemu.json").read_text())
    ports = {int(port) for word in plan["argv"] for port in re.findall(r",port=(\d+),", word)}
    assert len(ports) == 4
    assert not ports & listening
    options = ("--privileged", "--pid", "host", "--network", "host")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_greet, args=(listener,), daemon=True).start()
        numbers = map(str, (listener.getsockname()[1], *ports))
        words = ("localhost/busybox", "sh", "-c", DIAL, "sh", *numbers)
        assert machine.out("run", "--rm", *options, *words) == "a stranger's"


def test_doctor_asks_engine_and_qemu_through_their_pipes(machine: WindowsWherry) -> None:
    assert machine.python("-c", EXAMINE).ok().splitlines() == ["ok answers", "ok runs"]


def test_the_machine_is_taken_over_when_the_engine_is_killed(machine: WindowsWherry) -> None:
    machine.out("run", "-d", "--name", "survivor", "localhost/busybox", "sleep", "1000")
    killed = _engine_process(machine.home)
    os.kill(killed, signal.SIGKILL)
    eventually("the engine is gone", lambda: not Path(f"/proc/{killed}").exists())
    assert "survivor" in machine.out("ps", timeout=120)
    assert machine.out("exec", "survivor", "echo", "alive") == "alive"
    assert _engine_process(machine.home) != killed
    machine.out("rm", "--force", "survivor")


def _greet(listener: socket.socket) -> None:
    """The one port that is to answer: it shows that calls do arrive."""
    caller, _ = listener.accept()
    with caller:
        caller.sendall(b"a stranger's\n")


def _engine_process(home: Path) -> int:
    """Its pid outside of Wine."""
    wanted = f"WHERRY_HOME={windows_path(home)}".encode()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                line = (process / "cmdline").read_bytes()
                environment = (process / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"wherry.engine" in line and b"python.exe" in line and wanted in environment:
                return int(process.name)
    raise AssertionError("there is no engine")
