"""Machines of the architecture that the host does not have, on hosts of either: what they start as.

The host is what `platform.machine()` says. On Linux x86-64 the arm64 machine is booted for real
(tests/vm/test_arm64_machine.py); its reverse is held here.
"""

from __future__ import annotations

import itertools
import platform
import sys
from pathlib import Path
from typing import Any

import pytest
from machine_world import World, play

from wherry.engine.foreign import native_platform
from wherry.errors import MachineError, QemuNotFound
from wherry.machine.accel import ProbeResult, candidate, choose_accel, host_arch
from wherry.machine.config import prepare_directories
from wherry.machine.find import Host, Qemu, find_qemu
from wherry.machine.record import read_record

HOSTS = {
    # what Python says there: the system, Debian's name
    "aarch64": ("linux", "arm64"),
    "arm64": ("darwin", "arm64"),
    "ARM64": ("win32", "arm64"),
    "x86_64": ("linux", "amd64"),
    "AMD64": ("win32", "amd64"),
}
ARM_HOSTS = [name for name, (_, arch) in HOSTS.items() if arch == "arm64"]
on_posix = pytest.mark.skipif(sys.platform == "win32", reason="QEMU's sockets are Unix's here")
OTHER = {"amd64": "arm64", "arm64": "amd64"}


def on(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)


@pytest.mark.parametrize("machine", HOSTS)
def test_the_other_architecture_has_no_hardware_to_run_on(
    monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    on(monkeypatch, machine)
    system, arch = HOSTS[machine]
    assert host_arch() == arch
    assert candidate(arch, system=system) is not None
    assert candidate(OTHER[arch], system=system) is None


@pytest.mark.parametrize("machine", ARM_HOSTS)
def test_an_accelerator_that_is_asked_for_all_the_same_is_tried_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str
) -> None:
    on(monkeypatch, machine)
    binary = tmp_path / "qemu-system-x86_64"
    binary.touch()
    qemu = Qemu(binary, (9, 0, 0), "amd64")

    def probe(qemu: Qemu, accel: str) -> ProbeResult:
        return ProbeResult(False, f"invalid accelerator {accel}")

    assert choose_accel(qemu, "auto", tmp_path / "cache", probe=probe).name == "tcg"
    with pytest.raises(MachineError, match="hvf does not work here: invalid accelerator hvf"):
        choose_accel(qemu, "hvf", tmp_path / "cache", probe=probe)


@pytest.mark.parametrize(
    ("platform_name", "environ", "name", "hint"),
    [
        ("linux", {"PATH": "{bin}"}, "qemu-system-x86_64", "apt install qemu-system-x86"),
        ("darwin", {"PATH": "{bin}"}, "qemu-system-x86_64", "brew install qemu"),
        ("win32", {"PATH": "", "ProgramFiles": "{bin}/.."}, "qemu-system-x86_64.exe", ""),
    ],
)
def test_the_other_qemu_is_found_where_the_hosts_own_is(
    tmp_path: Path, platform_name: str, environ: dict[str, str], name: str, hint: str
) -> None:
    directory = tmp_path / "qemu"
    directory.mkdir()
    host = Host(
        platform=platform_name,
        environ={key: value.format(bin=directory) for key, value in environ.items()},
        os_release="ID=debian\n",
    )
    (directory / name).touch()
    (directory / name).chmod(0o755)
    found = find_qemu("amd64", host=host, version_text=lambda qemu: "QEMU emulator version 9.2.0")
    assert (found.arch, found.binary.name) == ("amd64", name)
    assert found.boots_elf
    (directory / name).unlink()
    with pytest.raises(QemuNotFound, match=r"qemu-system-x86_64 .* was not found") as caught:
        find_qemu("amd64", host=host, version_text=lambda qemu: "")
    assert hint in str(caught.value.hint)


def started_as(
    monkeypatch: pytest.MonkeyPatch, root: Path, machine: str, arch: str
) -> dict[str, Any]:
    """The options of the QEMU that such a host starts for a machine of `arch`, by name."""
    on(monkeypatch, machine)
    found: dict[str, Any] = {}

    async def work(world: World) -> None:
        world.qemu = Qemu(world.qemu.binary, (9, 2, 0), arch)
        monkeypatch.setattr(world, "choose_accel", choose_accel)
        made, paths = world.machine(), world.home.machine("m")
        prepare_directories(world.home, paths)
        await made.create({"arch": arch})
        assert native_platform(made).architecture == arch
        await made.ensure_running()
        record = read_record(paths.qemu_record)
        assert record is not None
        found.update(itertools.pairwise(record.argv))
        await made.stop()

    play(root, work)
    return found


@on_posix
@pytest.mark.parametrize("machine", ARM_HOSTS)
def test_an_x86_64_machine_on_an_arm64_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str
) -> None:
    """Emulated as on a host of its own: board, processor, the kernel that is started by PVH."""
    options = started_as(monkeypatch, tmp_path, machine, "amd64")
    assert options["-M"].startswith("q35,")
    assert options["-accel"].startswith("tcg,thread=multi")
    assert options["-cpu"].startswith("max,")
    assert Path(options["-kernel"]).name == "fast-kernel"
    assert "mitigations=off no_timer_check" in options["-append"]


@on_posix
@pytest.mark.parametrize("machine", ["x86_64", "AMD64"])
def test_an_arm64_machine_on_an_x86_64_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str
) -> None:
    options = started_as(monkeypatch, tmp_path, machine, "arm64")
    assert options["-M"].startswith("virt,")
    assert options["-accel"].startswith("tcg,")
    assert options["-cpu"] == "max,pauth=off"
    assert options["-append"].endswith("mitigations=off")
