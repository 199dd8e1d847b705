"""Machines that are reached by a vsock or through SSH: the same link, the port to fall back to."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_link_cuts import nothing_is_lost
from vm_containers import busybox_layers, run
from vm_loop import LoopThread
from vsock_daemon import vsock_daemon

import wherry_guest
from wherry.link import Link
from wherry.machine import Machine, create_machine
from wherry.machine.config import default_config
from wherry.machine.guest import peer_digest, replace_agent
from wherry.machine.vsock import DEVICE
from wherry.osutil import ProcessIdentity, kill
from wherry.paths import Home
from wherry.settings import Settings
from wherry_guest.identity import digest
from wherry_image import agent_cpio

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

CUTS = {"vsock": 50, "ssh": 12}
"""Each costs SSH a key exchange and a login, on an emulated processor."""


class Reached:
    """A machine that was started with `--link KIND`; an engine after the other may have it."""

    def __init__(self, kind: str, home: Home, settings: Settings, loop: LoopThread) -> None:
        self.kind = kind
        self.name = f"by-{kind}"
        self.home = home
        self._settings = settings
        self.loop = loop
        create_machine(home, self.name, replace(default_config(settings), link=kind))
        self.machine = self._open()
        loop.run(self.machine.ensure_running(), timeout=250)

    @property
    def link(self) -> Link:
        assert isinstance(self.machine.link, Link)
        return self.machine.link

    @property
    def carried_by(self) -> str:
        return str(self.machine.inspect()["carried_by"])

    def new_engine(self) -> None:
        self.loop.run(self.machine.aclose())
        self.machine = self._open()
        assert self.loop.run(self.machine.adopt())

    def echo(self) -> bytes:
        """What a container prints."""

        async def scenario() -> bytes:
            layers = busybox_layers(self.home, await self.machine.prepare_image())
            await self.machine.attach_layers(layers)
            code, output = await run(self.link, layers, "echo", "hello")
            assert code == 0
            return output

        return self.loop.run(scenario())

    def until(self, condition: Callable[[], bool], what: str) -> None:
        async def wait() -> None:
            while not condition():
                await asyncio.sleep(0.01)

        try:
            self.loop.run(wait(), timeout=60)
        except TimeoutError:
            pytest.fail(f"waited in vain for {what}; {self.machine.inspect()['notices']}")

    def end(self) -> None:
        self.loop.run(self.machine.stop())
        self.loop.run(self.machine.aclose())

    def _open(self) -> Machine:
        return self.loop.call(lambda: Machine(self.name, self.home, self._settings))


@pytest.fixture(scope="module", params=["vsock", "ssh"])
def reached(
    request: pytest.FixtureRequest,
    vm_home: Home,
    vm_settings: Settings,
    loop: LoopThread,
    test_cache: Path,
) -> Iterator[Reached]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "vsock" and not os.access(DEVICE, os.R_OK | os.W_OK):
            tools = vsock_daemon(test_cache)
            patch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
        it = Reached(request.param, vm_home, vm_settings, loop)
        yield it
        it.end()


def test_the_link_is_carried_by_what_was_asked_for_and_runs_containers(reached: Reached) -> None:
    assert reached.carried_by == reached.kind, reached.machine.inspect()["notices"]
    assert reached.echo() == b"hello\n"


def test_cuts_under_full_load_lose_nothing(reached: Reached, tmp_path: Path) -> None:
    cuts = CUTS[reached.kind]
    nothing_is_lost(reached.machine, reached.home, tmp_path, reached.loop, cuts)
    assert reached.carried_by == reached.kind, reached.machine.inspect()["notices"]


def test_a_new_engine_finds_its_way(reached: Reached) -> None:
    reached.new_engine()
    assert reached.carried_by == reached.kind, reached.machine.inspect()["notices"]
    assert reached.echo() == b"hello\n"


def test_a_replaced_agent_is_reached_the_same_way(reached: Reached, tmp_path: Path) -> None:
    package = Path(next(iter(wherry_guest.__path__)))
    other = tmp_path / "wherry_guest"
    shutil.copytree(package, other, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "identity.py").open("a", encoding="utf-8") as file:
        file.write("\n# another one\n")
    wanted = digest(tmp_path)
    reached.loop.run(replace_agent(reached.link, agent_cpio(other), wanted))
    reached.until(lambda: reached.carried_by == reached.kind, "the link to move again")
    assert peer_digest(reached.link) == wanted
    assert reached.echo() == b"hello\n"


def test_without_its_daemon_a_machine_is_reached_by_its_serial_port(reached: Reached) -> None:
    """The last one: a daemon does not come back to a running machine."""
    record = reached.home.machine(reached.name).vsock_record
    if not record.exists():
        pytest.skip("it has no vsock")
    daemon = json.loads(record.read_text())["daemon"]
    if daemon is None:
        pytest.skip("the kernel's vsock has no daemon")
    kill(ProcessIdentity(**daemon))
    reached.until(lambda: reached.carried_by == "serial", "the fall-back")
    assert reached.echo() == b"hello\n"
    reached.until(lambda: bool(reached.machine.inspect()["notices"]), "the notice")
    [notice] = reached.machine.inspect()["notices"]
    assert notice.startswith("the machine is reached by its serial port, not by vsock: ")
