"""Restored machines: no twins of each other, and as good as booted ones."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from needs import require
from vm_containers import busybox_layers, run
from vm_loop import LoopThread

import wherry_guest
from wherry.link import local_socket, open_link
from wherry.machine import Machine
from wherry.machine.accel import kernel_options
from wherry.machine.argv import VmSpec
from wherry.machine.bake import bake
from wherry.machine.boot import Deadlines, start_qemu
from wherry.machine.bringup import Tools
from wherry.machine.config import default_config, prepare_directories
from wherry.machine.disk import create_disk
from wherry.machine.endpoints import default_endpoints
from wherry.machine.find import find_qemu
from wherry.machine.guest import set_up
from wherry.machine.identity import Identity
from wherry.machine.image import prepare_image
from wherry.machine.initrd import BootFiles
from wherry.machine.memoryfile import memory_digest
from wherry.machine.restore import restore
from wherry.machine.template import Origin, Template, Templates, template_key
from wherry.paths import Home
from wherry.settings import Settings
from wherry_image import agent_cpio

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

QEMU = {
    "amd64": ("qemu-system-x86", "qemu-system-x86_64"),
    "arm64": ("qemu-system-arm", "qemu-system-aarch64"),
}
GENERATION = "8fd3d6a2-3b8d-4e0a-9a54-2f5c6a1a7b11"
TEMPLATE_LIMIT = 200 << 20

_DRAWING = '''


def _draw(params):
    """What twins would share. Run in the guest, added by a test."""
    import socket
    import time
    import uuid

    from wherry_guest.core import netlink
    from wherry_guest.core.syscalls import Kernel

    def read(path):
        return Path(path).read_text().strip() if Path(path).exists() else ""

    from pathlib import Path
    drawn = {
        "urandom": os.urandom(16).hex(),
        "boot_id": read("/proc/sys/kernel/random/boot_id"),
        "uuid": str(uuid.uuid4()),
        "mac": read("/sys/class/net/eth0/address"),
        "machine_id": read("/etc/machine-id"),
    }
    Kernel().netlink([netlink.link_up(netlink.LOOPBACK_INDEX)])
    listener = socket.create_server(("127.0.0.1", 7001))
    client = socket.socket()
    client.bind(("127.0.0.1", 7002))
    before = time.time_ns()
    client.connect(("127.0.0.1", 7001))
    after = time.time_ns()
    stamp = client.getsockopt(6, 24)  # TCP_TIMESTAMP: CLOCK_MONOTONIC in ms + the connection's own
    now = time.monotonic_ns() // 1_000_000
    client.setsockopt(6, 19, 1)  # TCP_REPAIR, so that sequence numbers can be asked for
    client.setsockopt(6, 20, 2)  # TCP_REPAIR_QUEUE: what is sent
    sequence = client.getsockopt(6, 21)  # TCP_QUEUE_SEQ: the initial one + 1
    # net/core/secure_seq.c: siphash(addresses, ports; secret) + CLOCK_REALTIME in 64 ns
    drawn["sequence_key"] = (sequence - 1 - (before >> 6)) % 2**32
    drawn["sequence_error"] = (after - before) >> 6
    drawn["stamp_key"] = (stamp - now) % 2**32
    client.close()
    listener.close()
    return drawn


_handlers = Agent._handlers


def _handlers_and_draw(self):
    handlers = _handlers(self)

    async def prepare(params):
        from wherry_guest.agent import renew

        await self._system.prepare(params)
        # The kernel reseeds by itself now and then: not for the next second, this way.
        ioctl = __import__("fcntl").ioctl
        with open("/dev/urandom", "wb", buffering=0) as device:
            ioctl(device, renew._RNDRESEEDCRNG, b"")

    return {**handlers, "system.prepare": later(prepare), "test.draw": at_once(_draw)}


Agent._handlers = _handlers_and_draw
'''


@dataclass(frozen=True)
class Nursery:
    """Restores one template as often as a test wants."""

    home: Home
    spec: VmSpec
    template: Template
    start: Any

    async def drawn(self, name: str, *, set_up_first: bool) -> dict[str, Any]:
        """What a machine of this name draws after its restore."""
        paths = self.home.machine(name)
        prepare_directories(self.home, paths)
        create_disk(paths.data_disk, 1 << 30)
        spec = replace(self.spec, name=name, data_disk=paths.data_disk)
        vm, link = await restore(
            spec,
            self.template,
            paths,
            open_link(local_socket(paths.agent_socket), deadline=60),
            start=lambda it: self.start(it, paths),
            deadline=60,
        )
        try:
            if set_up_first:
                await set_up(link, name, Identity.random())
            return await link.call("test.draw")
        finally:
            await link.aclose()
            await vm.quit()


@pytest.fixture(scope="module", params=QEMU)
def nursery(
    request: pytest.FixtureRequest, test_cache: Path, loop: LoopThread
) -> Iterator[Nursery]:
    """A template whose agent also knows `test.draw`; one processor: what is drawn, is drawn in
    order. Of both architectures: an arm64 machine has no generation id."""
    require(*QEMU[request.param])
    root = Path(tempfile.mkdtemp(prefix="wherry-twins-"))
    settings = Settings(cpus=1, memory_mib=512, disk_gib=1)
    ours = Home(root)
    (root / "cache").mkdir()
    (root / "cache" / "packages").symlink_to((test_cache / "packages").absolute())
    (root / "cache" / "vm").symlink_to((test_cache / "vm").absolute())
    yield loop.run(_nursery(ours, settings, request.param), timeout=280)
    shutil.rmtree(root)


async def _nursery(home: Home, settings: Settings, arch: str) -> Nursery:
    config = replace(default_config(settings), arch=arch)
    image = await asyncio.to_thread(prepare_image, config, home, settings)
    package = home.root / "agent" / "wherry_guest"
    shutil.copytree(next(iter(wherry_guest.__path__)), package)
    server = package / "agent" / "server.py"
    server.write_text(server.read_text() + _DRAWING)
    files = home.root / "image"  # the image's own would lose this agent's neighbours
    files.mkdir()
    qemu = find_qemu(config.arch)
    spec = VmSpec(
        name="twins",
        qemu=qemu,
        accel="tcg",
        cpus=1,
        memory_mib=512,
        kernel=image.fast_kernel if qemu.boots_elf else image.kernel,
        initrd=BootFiles(files, image.initrd, "twins").combined(agent_cpio(package)),
        cmdline=f"{image.cmdline} {kernel_options(arch, 'tcg')}",
        data_disk=None,
        disk_bytes=1 << 30,
        generation=GENERATION,
    )
    start = partial(
        start_qemu,
        image_key=image.key,
        agent_digest="twins",
        deadlines=Deadlines(),
        endpoints=default_endpoints(),
    )
    templates = Templates(home.templates)
    key = template_key(spec, image.key)
    await bake(
        spec,
        key,
        Origin.of(qemu, files),
        home,
        templates,
        start=start,
        open_link=lambda path, deadline: open_link(local_socket(path), deadline=deadline),
        deadlines=Deadlines(),
        idle=False,
    )
    template = templates.claim(key)
    assert template is not None
    return Nursery(home, spec, template, start)


_SHARED = ("urandom", "boot_id", "uuid", "mac", "machine_id")


def _is_near(one: dict[str, Any], other: dict[str, Any], name: str, within: int) -> bool:
    distance = (one[name] - other[name]) % 2**32
    return min(distance, 2**32 - distance) <= within


def _sequences_match(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether both connections had the same secret: their numbers then differ by time alone."""
    return _is_near(one, other, "sequence_key", one["sequence_error"] + other["sequence_error"])


def test_without_being_set_up_two_restored_machines_are_twins(
    nursery: Nursery, loop: LoopThread
) -> None:
    """The positive control: what the next test finds different is equal here."""
    one, other = (
        loop.run(nursery.drawn(name, set_up_first=False)) for name in ("twin-a", "twin-b")
    )
    assert {name: one[name] for name in _SHARED} == {name: other[name] for name in _SHARED}
    assert _sequences_match(one, other)
    assert _is_near(one, other, "stamp_key", 100)


def test_two_restored_machines_draw_different_numbers_and_have_different_ids(
    nursery: Nursery, loop: LoopThread
) -> None:
    """With one generation id: the host's entropy suffices."""
    one, other = (loop.run(nursery.drawn(name, set_up_first=True)) for name in ("a", "b"))
    for name in _SHARED:
        assert one[name] != other[name], name
        assert one[name], name
    assert not _sequences_match(one, other)
    assert not _is_near(one, other, "stamp_key", 100)


def test_another_generation_reseeds_the_kernel_by_itself(
    nursery: Nursery, loop: LoopThread
) -> None:
    if nursery.spec.qemu.arch == "arm64":
        pytest.skip("its firmware-less board has no place for a generation id")
    grown = replace(nursery, spec=replace(nursery.spec, generation="auto"))
    one, other = (loop.run(grown.drawn(name, set_up_first=False)) for name in ("c", "d"))
    assert one["urandom"] != other["urandom"]
    assert one["boot_id"] != other["boot_id"]


# The machine that other tests of this directory share is a restored one.


def template_of(machine: Machine) -> Path:
    """The template that it was restored from."""
    argv = json.loads(Path(machine.inspect()["directory"], "qemu.json").read_bytes())["argv"]
    [memory] = [word for word in argv if word.startswith("memory-backend-file,")]
    return Path(memory.partition("mem-path=")[2].partition(",")[0]).parent


def test_a_restored_machines_clocks_are_right(machine: Machine, loop: LoopThread) -> None:
    assert machine.link is not None
    info = loop.run(machine.link.call("system.info"))
    started_ns = machine.inspect()["started_ns"]
    now = info["boot_ns"] + info["uptime_ns"]
    assert abs(now - time.time_ns()) < 5e9
    assert info["uptime_ns"] < time.time_ns() - started_ns + 60e9
    later = loop.run(machine.link.call("system.info"))
    assert 0 < later["uptime_ns"] - info["uptime_ns"] < 10e9


def test_a_restored_machine_runs_containers_and_its_template_stays_as_it_was(
    machine: Machine, vm_home: Home, loop: LoopThread
) -> None:
    files = template_of(machine)
    before = memory_digest(files / "ram"), (files / "ram").stat().st_mtime_ns
    layers = busybox_layers(vm_home, loop.run(machine.prepare_image(), timeout=300))
    loop.run(machine.attach_layers(layers))
    script = "head -c 50000000 /dev/urandom > /big && sync && cat /proc/sys/kernel/random/boot_id"
    code, output = loop.run(run(machine.link, layers, "sh", "-c", script))
    assert code == 0
    assert output
    assert before == (memory_digest(files / "ram"), (files / "ram").stat().st_mtime_ns)


def test_a_template_is_small_private_and_known_to_be_in_use(
    vm_home: Home, machine: Machine
) -> None:
    files = template_of(machine)
    known = {it["key"]: it for it in Templates(vm_home.templates).all()}
    assert known[files.name]["bytes"] <= TEMPLATE_LIMIT
    assert known[files.name]["in_use"]
    for name in ("ram", "state", "template.json"):
        assert (files / name).stat().st_mode & 0o777 == 0o600
    assert files.stat().st_mode & 0o777 == files.parent.stat().st_mode & 0o777 == 0o700


def test_a_later_engine_takes_a_restored_machine_over_and_stops_it(
    vm_home: Home, vm_settings: Settings, machine: Machine, loop: LoopThread, tmp_path: Path
) -> None:
    tools = Tools(bake_after=3600)
    first = loop.call(lambda: Machine("restored", vm_home, vm_settings, tools=tools))
    loop.run(first.ensure_running(), timeout=300)
    assert first.inspect()["restored"]
    loop.run(first.aclose())
    second = loop.call(lambda: Machine("restored", vm_home, vm_settings, tools=tools))
    assert loop.run(second.adopt())
    assert second.inspect()["restored"]
    loop.run(second.stop())
    assert "Power down" in second.console_tail(50)
    loop.run(second.aclose())


def test_a_truncated_template_costs_a_boot_and_one_line(
    vm_home: Home, vm_settings: Settings, machine: Machine, loop: LoopThread
) -> None:
    """In a home of its own: the others' template is in use."""
    key = template_of(machine).name
    home = Home(Path(tempfile.mkdtemp(prefix="wherry-cut-")))
    (home.root / "cache").mkdir()
    for name in ("packages", "vm", "probes.json"):
        (home.root / "cache" / name).symlink_to((vm_home.root / "cache" / name).resolve())
    shutil.copytree(vm_home.templates / key, home.templates / key)
    tools = Tools(bake_after=3600)
    made = loop.call(lambda: Machine("m", home, vm_settings, tools=tools))
    try:
        loop.run(made.ensure_running(), timeout=300)
        assert made.inspect()["restored"], "a copied template is as good"
        loop.run(made.stop())
        os.truncate(home.templates / key / "ram", 1 << 20)
        loop.run(made.ensure_running(), timeout=300)
        assert not made.inspect()["restored"]
        [notice] = made.notices
        assert "its memory is damaged" in notice
    finally:
        loop.run(made.stop())
        loop.run(made.aclose())
        shutil.rmtree(home.root)
