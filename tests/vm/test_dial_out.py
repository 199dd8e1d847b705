"""QEMU that dials out to a keeper, as on Windows: a machine over it; strangers get nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from harness import ROOT
from vm_loop import LoopThread
from waiting import eventually

from wherry.machine import Machine
from wherry.machine.bringup import Tools
from wherry.machine.endpoints import CHARDEVS, Chardevs, DialOut, Spawned
from wherry.machine.qmp import Qmp
from wherry.machine.template import Templates
from wherry.osutil import ProcessIdentity, is_alive, kill, wait_gone
from wherry.paths import Home, MachinePaths
from wherry.settings import Settings

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

LATE_QEMU = """
import json, os, pathlib, sys, time
place = pathlib.Path(sys.argv[1])
ports = [word for word in sys.argv if "port=" in word]
(place / "new").write_text(json.dumps(ports))
(place / "new").rename(place / "ports")
os.read(os.open(place / "go", os.O_RDONLY), 1)
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""A QEMU that dials when it is told to: who comes first is a stranger."""

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'


def ports_of(words: Sequence[str]) -> list[int]:
    return [int(port) for word in words for port in re.findall(r",port=(\d+),", word)]


def refuses(port: int) -> bool:
    with socket.socket() as stranger:
        return stranger.connect_ex(("127.0.0.1", port)) != 0


@dataclass
class Bench:
    """A paused QEMU without a guest's memory to speak of, behind a keeper."""

    paths: MachinePaths
    words: list[str] = field(default_factory=list)

    def command(self, chardevs: Chardevs) -> list[str]:
        qemu = shutil.which("qemu-system-x86_64")
        assert qemu is not None
        argv = [*self.words, qemu, "-M", "q35", "-nodefaults", "-display", "none", "-S", "-m", "32"]
        for name in CHARDEVS:
            argv += ["-chardev", f"socket,id={name},{chardevs[name]}"]
        for name in ("qmp", "rescue"):
            argv += ["-mon", f"chardev={name},mode=control"]
        return [*argv, "-serial", "chardev:serial"]

    def launch(self) -> Spawned:
        return DialOut().launch(self.command, self.paths, None)


@pytest.fixture(autouse=True)
def keeper_finds_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a process of its own."""
    roots = [str(ROOT / name) for name in ("host", "guest-agent", "vm-images")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(roots))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    paths = Home(tmp_path).machine("m")
    paths.root.mkdir(parents=True)
    yield Bench(paths)


def test_who_dials_first_is_not_taken_for_qemu(bench: Bench, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    (tmp_path / "late.py").write_text(LATE_QEMU)
    bench.words = [sys.executable, str(tmp_path / "late.py"), str(tmp_path)]
    launched: list[Spawned] = []
    launching = threading.Thread(target=lambda: launched.append(bench.launch()), daemon=True)
    launching.start()
    eventually("QEMU is about to dial", (tmp_path / "ports").exists)
    ports = ports_of(json.loads((tmp_path / "ports").read_text()))
    assert len(ports) == len(CHARDEVS)
    strangers = [socket.create_connection(("127.0.0.1", port), timeout=10) for port in ports]
    for stranger in strangers:
        with stranger:
            try:
                stranger.sendall(GREETING)
                assert stranger.recv(100) == b""
            except ConnectionError:
                pass  # dropped before it had said anything
    (tmp_path / "go").write_text("x")
    launching.join(timeout=30)
    [spawned] = launched

    async def ask() -> None:
        qmp = await Qmp.connect(bench.paths.qmp_socket, timeout=10)
        assert (await qmp.execute("query-status"))["status"] == "prelaunch"
        await qmp.execute("quit")
        await qmp.wait_closed()
        await qmp.aclose()

    assert all(map(refuses, ports))  # also while no engine is connected
    asyncio.run(ask())
    assert wait_gone(spawned.identity, 10)


def test_a_qemu_that_cannot_start_is_heard_of_at_once(bench: Bench) -> None:
    bench.words = ["false"]
    with pytest.raises(Exception, match="QEMU ended at once") as caught:
        bench.launch()
    assert getattr(caught.value, "status", None) == 1


def test_a_machine_over_a_keeper_starts_is_adopted_and_ends(
    vm_home: Home, vm_settings: Settings, loop: LoopThread
) -> None:
    def make() -> Machine:
        return Machine("dialled", vm_home, vm_settings, tools=Tools(endpoints=DialOut()))

    def given_up() -> list[str]:
        return [it["key"] for it in Templates(vm_home.templates).all() if it["status"] == "bad"]

    before = given_up()

    async def life() -> None:
        first = make()
        link = await first.ensure_running()
        assert "memory" in str(await link.call("system.info", {}))
        assert not first.inspect()["restored"]  # no file reaches QEMU through a keeper
        assert given_up() == before
        pid = first.inspect()["pid"]
        record = json.loads(vm_home.machine("dialled").qemu_record.read_text())
        assert all(map(refuses, ports_of(record["argv"])))
        await first.aclose()
        second = make()
        assert await second.adopt()
        assert second.inspect()["pid"] == pid
        await second.stop()
        await second.aclose()
        assert not is_alive(ProcessIdentity(**record["identity"]))

    loop.run(life())


def test_a_qemu_whose_keeper_died_is_ended_by_the_next_engine(
    vm_home: Home, vm_settings: Settings, loop: LoopThread
) -> None:
    """On Windows the system ends it with the keeper; elsewhere the record tells whom to end."""

    async def life() -> None:
        machine = Machine("orphan", vm_home, vm_settings, tools=Tools(endpoints=DialOut()))
        await machine.ensure_running()
        record = json.loads(vm_home.machine("orphan").qemu_record.read_text())
        qemu = ProcessIdentity(**record["identity"])
        await machine.aclose()
        keeper = int(Path(f"/proc/{qemu.pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(keeper, 9)
        later = Machine("orphan", vm_home, vm_settings, tools=Tools(endpoints=DialOut()))
        assert not await later.adopt()
        assert not is_alive(qemu)
        await later.aclose()
        kill(qemu)

    loop.run(life())
