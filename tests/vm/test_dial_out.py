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
from typing import Any

import pytest
from harness import ROOT
from vm_containers import busybox_layers, end_of, run, start
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


def listening_ports(pid: int) -> list[int]:
    """The TCP ports that a process has opened."""
    sockets = {str(it.readlink()) for it in Path(f"/proc/{pid}/fd").iterdir()}
    table = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
    ]
    return [
        int(fields[1].rpartition(":")[2], 16)
        for fields in table
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets  # TCP_LISTEN
    ]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Stranger:
    """Listens on the host's loopback, says to who calls what QEMU's monitor would say, and keeps
    what callers say."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.heard: list[bytes] = []

    def __enter__(self) -> Stranger:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return  # the end
            with caller:
                caller.settimeout(10)
                caller.sendall(GREETING)
                caller.shutdown(socket.SHUT_WR)
                self.heard.append(caller.recv(4096))


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


@pytest.fixture(scope="module", autouse=True)
def keeper_finds_us() -> Iterator[None]:
    """It is a process of its own."""
    roots = [str(ROOT / name) for name in ("host", "guest-agent", "vm-images")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(roots))
        yield


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


@dataclass
class Dialled:
    """A machine over a keeper: one machine, one story in the order of the tests below."""

    home: Home
    settings: Settings
    loop: LoopThread
    machine: Machine = field(init=False)

    def __post_init__(self) -> None:
        self.machine = self.make()

    def make(self) -> Machine:
        return Machine("dialled", self.home, self.settings, tools=Tools(endpoints=DialOut()))

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.home.machine("dialled").qemu_record.read_text())
        return found

    @property
    def ports(self) -> list[int]:
        return ports_of(self.record["argv"])


@pytest.fixture(scope="module")
def dialled(vm_home: Home, vm_settings: Settings, loop: LoopThread) -> Iterator[Dialled]:
    made = Dialled(vm_home, vm_settings, loop)
    yield made

    async def end() -> None:
        await made.machine.stop()
        await made.machine.aclose()

    loop.run(end())


def test_a_machine_over_a_keeper_starts_and_nobody_listens(dialled: Dialled) -> None:
    def given_up() -> list[str]:
        found = Templates(dialled.home.templates).all()
        return [it["key"] for it in found if it["status"] == "bad"]

    before = given_up()

    async def life() -> None:
        machine = dialled.machine
        link = await machine.ensure_running()
        assert "memory" in str(await link.call("system.info", {}))
        assert not machine.inspect()["restored"]  # no file reaches QEMU through a keeper
        assert given_up() == before

    dialled.loop.run(life())
    assert len(dialled.ports) == len(CHARDEVS)
    assert all(map(refuses, dialled.ports))
    qemu = int(dialled.record["identity"]["pid"])
    assert not listening_ports(qemu)
    assert not listening_ports(parent_of(qemu))


FREE = "busybox nsenter -t 1 -m -- /usr/sbin/nft flush ruleset || exit 9;"
"""What root of the machine can do: else the guest's own rules keep it from 10.0.2.2."""

DIAL = """
for port in "$@"; do
    if busybox nc -w 10 10.0.2.2 $port </dev/null 2>/dev/null; then echo "$port answers"; fi
done;
"""
"""In the guest: 10.0.2.2 is the host's loopback there."""


def test_a_guest_that_dials_home_gets_nothing_and_disturbs_nothing(dialled: Dialled) -> None:
    """Taken over by whoever, while an engine runs and without one. A stranger shows that the calls
    do arrive."""
    machine, ports = dialled.machine, dialled.ports
    pid = machine.inspect()["pid"]

    async def with_an_engine(stranger: Stranger) -> str:
        image = await machine.prepare_image(lambda *_: None)
        layers = busybox_layers(dialled.home, image)
        await machine.attach_layers(layers)
        assert machine.link is not None
        words = ("sh", *(str(port) for port in (*ports, stranger.port)))
        once = ("sh", "-c", FREE + DIAL, *words)
        code, said = await run(machine.link, layers, *once, powerful=True)
        assert (code, said) == (0, GREETING + b"%d answers\n" % stranger.port)
        for_ever = ("sh", "-c", f"while :; do {DIAL} sleep 0.1; done", *words)
        return await start(machine.link, layers, *for_ever, powerful=True)

    async def with_the_next(id: str) -> bytes:
        assert await dialled.machine.adopt()
        assert dialled.machine.inspect()["pid"] == pid
        link = dialled.machine.link
        assert link is not None
        await link.call("container.kill", {"id": id, "signal": 9, "final": True})
        return (await end_of(link, id))[1]

    with Stranger() as stranger:
        dialling = dialled.loop.run(with_an_engine(stranger))
        dialled.loop.run(machine.aclose())
        rounds = len(stranger.heard) + 2  # one was under way, the other is without an engine
        eventually("the guest has dialled all ports", lambda: len(stranger.heard) >= rounds)
        assert all(map(refuses, ports))
        dialled.machine = dialled.make()
        said = dialled.loop.run(with_the_next(dialling))
    assert set(stranger.heard) == {b""}
    whole = GREETING + b"%d answers\n" % stranger.port
    assert said.count(whole) >= 2
    assert not said.replace(whole, b"").replace(GREETING, b"")  # the last was cut short


def test_a_machine_over_a_keeper_ends(dialled: Dialled) -> None:
    qemu = ProcessIdentity(**dialled.record["identity"])
    dialled.loop.run(dialled.machine.stop())
    assert not is_alive(qemu)


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
        os.kill(parent_of(qemu.pid), 9)
        later = Machine("orphan", vm_home, vm_settings, tools=Tools(endpoints=DialOut()))
        assert not await later.adopt()
        assert not is_alive(qemu)
        await later.aclose()
        kill(qemu)

    loop.run(life())
