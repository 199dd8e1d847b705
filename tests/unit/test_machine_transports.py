"""Which way the link takes: vsock's device and daemon as data, falling back, what a host lacks."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_machine_argv import SOCKETS, SPEC, values
from vmimage_samples import deb, program

from wherry.errors import InvalidInput, LinkError, MachineError
from wherry.link import Transport
from wherry.link.vsock import Secrets
from wherry.machine import vsock
from wherry.machine.argv import qemu_argv
from wherry.machine.config import MachineConfig
from wherry.machine.transports import _TRIES, _Way, check_link
from wherry.machine.vsock import Vsock, connect_vsock, forget_vsock, start_vsock
from wherry.osutil import identify, is_alive, spawn_detached
from wherry.paths import Home
from wherry_image.errors import FormatError
from wherry_image.sshserver import SSH_SERVER, _contents

CONFIG = MachineConfig(cpus=1, memory_mib=512, disk_gib=1, arch="amd64")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has vsocks")


def test_the_kernels_vsock_is_one_device_and_the_daemons_shares_the_memory() -> None:
    kernel = qemu_argv(replace(SPEC, vsock=Vsock(77)), SOCKETS)
    assert "vhost-vsock-pci,guest-cid=77" in values(kernel, "-device")
    assert values(kernel, "-object") == values(qemu_argv(SPEC, SOCKETS), "-object")
    daemon = qemu_argv(replace(SPEC, vsock=Vsock(77, Path("/m/a,b"))), SOCKETS)
    assert "vhost-user-vsock-pci,chardev=vhost" in values(daemon, "-device")
    assert "socket,id=vhost,path=/m/a,,b" in values(daemon, "-chardev")
    assert "memory-backend-memfd,id=ram,size=1024M,share=on" in values(daemon, "-object")


def _host(monkeypatch: pytest.MonkeyPatch, *, device: bool, daemon: str | None) -> None:
    monkeypatch.setattr(vsock.os, "access", lambda path, mode: device)
    monkeypatch.setattr(vsock.shutil, "which", lambda name: daemon)


@linux
def test_a_host_without_a_vsock_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    _host(monkeypatch, device=False, daemon=None)
    with pytest.raises(InvalidInput, match="this host has no vsock") as refused:
        check_link(replace(CONFIG, link="vsock"))
    assert "modprobe vhost_vsock" in str(refused.value.hint)
    _host(monkeypatch, device=False, daemon="/usr/bin/vhost-device-vsock")
    check_link(replace(CONFIG, link="vsock"))
    _host(monkeypatch, device=True, daemon=None)
    check_link(replace(CONFIG, link="vsock"))


@pytest.mark.parametrize(("platform", "link"), [("darwin", "vsock"), ("win32", "ssh")])
def test_a_link_that_the_system_has_not_is_refused(
    monkeypatch: pytest.MonkeyPatch, platform: str, link: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(InvalidInput, match="only"):
        check_link(replace(CONFIG, link=link))


@linux
def test_the_daemon_is_found_by_its_record_and_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = Home(tmp_path).machine("m")
    paths.root.mkdir(parents=True)
    child = spawn_detached(["sleep", "1000"], log=paths.qemu_log)
    daemon = identify(child)
    assert daemon is not None
    record = {"cid": 7, "daemon": {"pid": daemon.pid, "start_time": daemon.start_time}}
    paths.vsock_record.write_text(json.dumps(record))
    forget_vsock(paths)
    assert not is_alive(daemon)
    assert not paths.vsock_record.exists()
    _host(monkeypatch, device=True, daemon=None)
    assert start_vsock(paths).vhost is None
    connect_vsock(paths, 1024, Secrets.fresh())
    forget_vsock(paths)
    with pytest.raises(MachineError, match="without a vsock"):
        connect_vsock(paths, 1024, Secrets.fresh())


@linux
def test_a_daemon_that_ends_at_once_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = Home(tmp_path).machine("m")
    paths.root.mkdir(parents=True)
    _host(monkeypatch, device=False, daemon="/bin/false")
    with pytest.raises(MachineError, match="ended at once"):
        start_vsock(paths)


class FakeTransport:
    def __init__(self, kind: str) -> None:
        self.kind = kind


def ways(preferred: Callable[[], Awaitable[Transport]], fell_back: list[str]) -> _Way:
    async def port() -> Transport:
        return FakeTransport("serial")  # type: ignore[return-value]  # never used as one

    return _Way("ssh", preferred, port, lambda: fell_back.append("fell back"))


def test_a_way_that_fails_gives_way_to_the_port_for_good() -> None:
    async def test() -> None:
        works = True

        async def ssh() -> Transport:
            if not works:
                raise LinkError("it is gone")
            return FakeTransport("ssh")  # type: ignore[return-value]  # as above

        fell_back: list[str] = []
        way = ways(ssh, fell_back)
        assert (await way.connect()).kind == "ssh"  # type: ignore[attr-defined]  # ours
        await way.decided
        works = False
        assert (await way.connect()).kind == "serial"  # type: ignore[attr-defined]  # ours
        works = True
        assert (await way.connect()).kind == "serial"  # type: ignore[attr-defined]  # ours
        assert (way.taken, fell_back) == (False, ["fell back"])

    asyncio.run(test())


def test_a_way_on_which_nobody_answers_gives_way_too() -> None:
    async def test() -> None:
        async def ssh() -> Transport:
            return FakeTransport("ssh")  # type: ignore[return-value]  # as above

        fell_back: list[str] = []
        way = ways(ssh, fell_back)
        for _ in range(_TRIES):
            assert (await way.connect()).kind == "ssh"  # type: ignore[attr-defined]  # ours
        way.answered()
        for _ in range(_TRIES):
            assert (await way.connect()).kind == "ssh"  # type: ignore[attr-defined]  # ours
        assert (await way.connect()).kind == "serial"  # type: ignore[attr-defined]  # ours
        assert fell_back == ["fell back"]

    asyncio.run(test())


def test_the_first_try_decides_and_its_failure_is_told() -> None:
    async def test() -> None:
        async def ssh() -> Transport:
            raise OSError("refused")

        fell_back: list[str] = []
        way = ways(ssh, fell_back)
        assert (await way.connect()).kind == "serial"  # type: ignore[attr-defined]  # ours
        with pytest.raises(OSError, match="refused"):
            await way.decided
        assert fell_back == []

    asyncio.run(test())


def _packages(directory: Path) -> dict[str, Path]:
    triplet = "/usr/lib/x86_64-linux-gnu"
    contents = {
        "dropbear-bin": {
            "/usr/sbin/dropbear": program("libz.so.1", "libc.so.6"),
            "/usr/bin/dropbearkey": program("libc.so.6"),
            "/usr/bin/dbclient": program("libc.so.6"),
        },
        "openssh-sftp-server": {"/usr/lib/openssh/sftp-server": program("libc.so.6")},
        "zlib1g": {
            f"{triplet}/libz.so.1.3": program("libdeep.so.2"),
            f"{triplet}/libz.so.1": "-> libz.so.1.3",
            f"{triplet}/libdeep.so.2": program(),
            f"{triplet}/libunused.so.9": program(),
        },
        "libc6": {f"{triplet}/libc.so.6": program()},
    }
    files = {}
    for name, tree in contents.items():
        files[name] = directory / f"{name}.deb"
        files[name].write_bytes(deb(tree))
    return files


def test_the_ssh_servers_archive_has_programs_and_the_libraries_that_they_need(
    tmp_path: Path,
) -> None:
    tree = _contents(_packages(tmp_path))
    files = [path for path, node in tree if node.is_file]
    assert files == [
        "/bin/dropbear",
        "/bin/dropbearkey",
        "/bin/sftp-server",
        "/lib/libdeep.so.2",
        "/lib/libz.so.1",
    ]


def test_packages_without_the_server_are_refused(tmp_path: Path) -> None:
    files = _packages(tmp_path)
    del files["openssh-sftp-server"]
    with pytest.raises(FormatError, match="have no sftp-server"):
        _contents(files)


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_the_shipped_locks_name_the_server(arch: str) -> None:
    names = {package.name for package in SSH_SERVER.lock(arch).packages}
    assert {"dropbear-bin", "openssh-sftp-server"} <= names
    assert "openssh-client" not in names
