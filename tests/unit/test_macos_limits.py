"""What macOS does otherwise, with fakes of it: so it is held where no macOS is."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest
from image_fakes import FakeRegistry, running
from token_server import Authority

from wherry.doctor.processes import of_ps
from wherry.engine import activation, facts
from wherry.errors import EngineUnreachable, InvalidInput
from wherry.images.platform import default_platform
from wherry.images.transport import Transport
from wherry.images.trust import Trust
from wherry.logins import Credentials, Logins
from wherry.machine.accel import host_arch
from wherry.osutil import files, host, process, programs

posix = pytest.mark.skipif(os.name == "nt", reason="scripts, descriptors and modes of POSIX")


class Sysctl:
    """sysctlbyname(3) of libc."""

    def __init__(self, values: dict[bytes, tuple[int, int]]) -> None:
        self.values = values

    def sysctlbyname(self, name: bytes, value: Any, length: Any, _new: None, _size: int) -> int:
        if name not in self.values:
            return -1
        number, size = self.values[name]
        ctypes.memmove(value, number.to_bytes(size, "little"), size)
        length._obj.value = size
        return 0


def on_a_mac(monkeypatch: pytest.MonkeyPatch, machine: str, **values: tuple[int, int]) -> None:
    names = {name.replace("__", ".").encode(): value for name, value in values.items()}
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(host.platform, "machine", lambda: machine)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_options: Sysctl(names))


@pytest.mark.parametrize(
    ("machine", "translated", "arch"),
    [
        ("arm64", None, "arm64"),
        ("x86_64", None, "amd64"),
        ("x86_64", 0, "amd64"),
        ("x86_64", 1, "arm64"),
    ],
)
def test_a_python_under_rosetta_is_on_apple_silicon(
    monkeypatch: pytest.MonkeyPatch, machine: str, translated: int | None, arch: str
) -> None:
    known = {} if translated is None else {"sysctl__proc_translated": (translated, 4)}
    on_a_mac(monkeypatch, machine, **known)
    assert host_arch() == arch
    assert str(default_platform()) == f"linux/{arch}"
    linux = {"arm64": "aarch64", "amd64": "x86_64"}[arch]
    assert facts.guest_machine(facts.GuestFacts()) == linux


def test_the_memory_of_a_mac_is_asked_of_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_mac(monkeypatch, "arm64", hw__memsize=(24 << 30, 8))
    assert host.total_memory() == 24 << 30
    on_a_mac(monkeypatch, "arm64")
    with pytest.raises(OSError, match=r"hw\.memsize"):
        host.total_memory()


@posix
def test_a_process_is_known_by_libproc_and_a_zombie_is_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Libproc:
        status = 2

        def proc_pidinfo(self, pid: int, kind: int, _arg: Any, buffer: Any, size: int) -> int:
            assert (kind, size) == (3, 136)
            if pid != 7:
                return 0
            info = bytearray(136)
            info[4:8] = self.status.to_bytes(4, sys.byteorder)
            info[120:128] = (1700000000).to_bytes(8, sys.byteorder)
            info[128:136] = (42).to_bytes(8, sys.byteorder)
            ctypes.memmove(buffer, bytes(info), size)
            return size

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_options: Libproc())
    assert process.identify(7) == process.ProcessIdentity(7, "1700000000.000042")
    assert process.identify(8) is None
    monkeypatch.setattr(Libproc, "status", 5)
    assert process.identify(7) is None


@posix
@pytest.mark.parametrize("knows", [True, False])
def test_what_is_stored_reaches_the_medium(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, knows: bool
) -> None:
    """F_FULLFSYNC; on a network file system, which does not know it, fsync."""
    import fcntl

    calls: list[str] = []

    def full(_descriptor: int, _order: int) -> None:
        calls.append("F_FULLFSYNC")
        if not knows:
            raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: calls.append("fsync"))
    with (tmp_path / "file").open("wb") as file:
        files.sync_descriptor(file.fileno())
    assert calls == ["F_FULLFSYNC"] + ([] if knows else ["fsync"])


@posix
def test_programs_are_found_where_homebrew_and_docker_desktop_put_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "brew" / "tool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setattr(programs, "MACOS_PACKAGES", (str(tool.parent),))
    assert programs.find_program("tool", "/usr/bin:/bin") is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert programs.find_program("tool", "/usr/bin:/bin") == str(tool)
    assert "/Applications/Docker.app/Contents/Resources/bin" in programs.macos_directories()


@posix
@pytest.mark.parametrize(
    ("said", "hinted"),
    [
        ("User interaction is not allowed. (-25308)", True),
        ("keychain cannot be accessed because the current session does not allow it", True),
        ("something else", False),
    ],
)
def test_a_locked_keychain_is_told_with_how_to_unlock_it(
    tmp_path: Path, said: str, hinted: bool
) -> None:
    script = tmp_path / "docker-credential-osxkeychain"
    script.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{said}'\nexit 1\n")
    script.chmod(0o755)
    (tmp_path / "config.json").write_text('{"credsStore": "osxkeychain"}')
    environ = {"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with pytest.raises(InvalidInput, match="docker-credential-osxkeychain failed") as caught:
        Logins(environ).store("r.example", Credentials("me", "secret"))
    assert ("security unlock-keychain" in (caught.value.hint or "")) == hinted


def test_a_keychains_der_and_pem_exports_are_trusted(tmp_path: Path) -> None:
    authority = Authority(tmp_path).write()
    pem = authority.ca_file
    der, several = tmp_path / "exported.cer", tmp_path / "found.pem"
    der.write_bytes(ssl.PEM_cert_to_DER_cert(pem.read_text()))
    other = Authority(tmp_path / "other").write().ca_file.read_text()
    text = f"keychain: “login”\n{pem.read_text()}\nclass: 0x80001000\n{other}"
    several.write_text(text, encoding="utf-8")
    fake = FakeRegistry()
    fake.use_tls(authority.server_context())
    with running(fake):
        for file in (pem, der, several):
            transport = Transport(trust=Trust(((fake.host, str(file)),)))
            answer = transport.request("GET", f"https://{fake.host}/v2/", {})
            assert answer.status == 200
            answer.close()
            transport.close()
    (tmp_path / "empty").write_bytes(b"")
    transport = Transport(trust=Trust((("r.example", str(tmp_path / "empty")),)))
    with pytest.raises(InvalidInput, match="PEM or DER") as caught:
        transport.request("GET", "https://r.example/v2/", {})
    assert "security find-certificate" in (caught.value.hint or "")


@posix
def test_launchds_listener_counts_where_the_kernel_does_not_say_that_it_listens() -> None:
    class Silent(socket.socket):
        code = errno.ENOPROTOOPT

        def getsockopt(self, *_args: Any) -> Any:
            raise OSError(self.code, os.strerror(self.code))

    with Silent(socket.AF_UNIX) as sock:
        assert activation._listens(sock)
        sock.code = errno.EBADF
        with pytest.raises(OSError, match="Bad file descriptor"):
            activation._listens(sock)
    assert EngineUnreachable.http_status


def test_command_lines_are_those_of_ps() -> None:
    text = "    1 /sbin/launchd\n  512 /opt/homebrew/bin/qemu-system-aarch64 -M virt\n\n77\n"
    assert list(of_ps(text)) == [
        (1, "/sbin/launchd"),
        (512, "/opt/homebrew/bin/qemu-system-aarch64 -M virt"),
        (77, ""),
    ]
