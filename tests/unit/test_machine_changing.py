"""A machine's configuration made and changed: what is refused, what is pending."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from wherry.errors import Conflict, InvalidInput, MachineError, NotFound, QemuNotFound
from wherry.machine import MachineConfig, changing
from wherry.machine.accel import AccelChoice
from wherry.machine.changing import Configuration, cpu_models, pending
from wherry.machine.config import read_config
from wherry.machine.disk import create_disk
from wherry.machine.find import Qemu
from wherry.paths import Home
from wherry.settings import Settings

GIB = 1 << 30


class Room:
    """A home, and a host of 8 GiB whose kvm works and whose QEMU knows two processors."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = Home(root / "home")
        self.qemu = root / "qemu-system-x86_64"
        self.qemu.write_text(
            "#!/bin/sh\necho Available CPUs:\necho 'x86 max  (alias)'\necho '  pc'\n"
        )
        self.qemu.chmod(self.qemu.stat().st_mode | stat.S_IXUSR)
        self.searched: list[str] = []
        self.probed: list[str] = []
        self.home.root.mkdir()
        monkeypatch.setattr(changing, "total_memory", lambda: 8 * GIB)
        monkeypatch.setattr(changing, "candidate", {"amd64": "kvm"}.get)

    def machine(self, name: str = "m") -> Configuration:
        paths = self.home.machine(name)
        paths.root.mkdir(parents=True, exist_ok=True)
        settings = Settings(cpus=2, memory_mib=1024, disk_gib=8)
        return Configuration(self.home, paths, settings, self.find_qemu, self.choose_accel)

    def find_qemu(self, arch: str, configured: str | None) -> Qemu:
        self.searched.append(arch)
        if arch != "amd64":
            raise QemuNotFound("qemu-system-aarch64 was not found", hint="install it: …")
        return Qemu(self.qemu, (8, 0, 0), arch)

    def choose_accel(self, qemu: Qemu, requested: str, cache: Path) -> AccelChoice:
        self.probed.append(requested)
        return AccelChoice(requested)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    monkeypatch.setattr("wherry.machine.config.host_arch", lambda: "amd64")
    return Room(tmp_path, monkeypatch)


def test_what_is_not_given_has_the_settings_size(room: Room) -> None:
    made = room.machine().create({"cpus": 3})
    assert (made.cpus, made.memory_mib, made.disk_gib) == (3, 1024, 8)
    assert read_config(room.home.machine("m").config) == made


def test_a_machine_is_made_once(room: Room) -> None:
    room.machine().create({})
    with pytest.raises(Conflict, match="a machine 'm' already"):
        room.machine().create({})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"colour": "red"}, "a machine has no 'colour'"),
        ({"cpus": "2"}, "cpus must be of type int"),
        ({"cpus": True}, "cpus must be of type int"),
        ({"cpus": 0}, "cannot have 0 processors"),
        ({"memory_mib": 9000}, "this computer has 8192 MiB"),
        ({"memory_mib": 10}, "too little"),
        ({"disk_gib": 9999}, "cannot have 9999 GiB"),
        ({"arch": "mips"}, "unknown architecture"),
        ({"accel": "warp"}, "unknown accelerator"),
        ({"accel": "hvf"}, "hvf cannot run amd64 machines"),
        ({"cpu": "pentium!"}, "not a processor model"),
        ({"cpu": "i386"}, "QEMU has no amd64 processor 'i386'"),
        ({"link": "smoke"}, "unknown link"),
        ({"kernel": "2.4"}, "no kernel series"),
        ({"kernel": "relative/bzImage"}, "not an absolute path"),
        ({"kernel": "/none/bzImage"}, "cannot read the kernel"),
        ({"kernel": "/none/linuxkit.yml"}, "cannot read"),
        ({"modules": "/lib/modules"}, "brings its own kernel modules"),
    ],
)
def test_each_wrong_value_is_one_clear_line_and_changes_nothing(
    room: Room, values: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        room.machine().create(values)
    assert "\n" not in caught.value.message
    assert not room.home.machine("m").config.exists()
    before = room.machine().create({})
    with pytest.raises(InvalidInput, match=message):
        room.machine().change(values)
    assert read_config(room.home.machine("m").config) == before


def test_a_machine_whose_qemu_is_missing_is_not_made(room: Room) -> None:
    with pytest.raises(QemuNotFound) as caught:
        room.machine().create({"arch": "arm64"})
    assert caught.value.hint


def test_an_accelerator_that_was_asked_for_is_tried(room: Room) -> None:
    room.machine().create({"accel": "kvm", "cpu": "max,-avx512f"})
    assert room.probed == ["kvm"]


def test_what_does_not_change_is_not_checked_again(room: Room) -> None:
    room.machine().create({})
    room.searched.clear()
    room.machine().change({"cpus": 4})
    assert room.searched == []


def test_a_disk_only_grows(room: Room) -> None:
    room.machine().create({"disk_gib": 8})
    room.machine().change({"disk_gib": 2})  # it is made at the first start
    create_disk(room.home.machine("m").data_disk, 2 * GIB)
    room.machine().change({"disk_gib": 4})
    with pytest.raises(InvalidInput, match="it has 4 GiB"):
        room.machine().change({"disk_gib": 3})


def test_the_architecture_stays_once_there_is_a_disk(room: Room) -> None:
    room.machine().create({})
    create_disk(room.home.machine("m").data_disk, 8 * GIB)
    with pytest.raises(InvalidInput, match="cannot be changed"):
        room.machine().change({"arch": "arm64"})


def test_modules_go_with_their_kernel(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changing, "check_kernel", lambda arch, kernel: None)
    room.machine().create({"kernel": "/k/bzImage", "modules": "/k"})
    assert room.machine().change({"cpus": 1}).modules == "/k"
    assert room.machine().change({"kernel": "6.1"}).modules == ""


def test_a_kept_disk_is_taken_up_under_its_name(room: Room) -> None:
    machine = room.machine()
    create_disk(room.home.machine("m").data_disk, 20 * GIB)
    assert machine.stored().disk_gib == 20
    with pytest.raises(InvalidInput, match="it has 20 GiB"):
        machine.create({"disk_gib": 10})
    assert machine.create({}).disk_gib == 20


def test_a_kept_disk_is_taken_by_another_machine(room: Room) -> None:
    kept = room.machine("kept")
    create_disk(room.home.machine("kept").data_disk, 20 * GIB)
    assert room.machine().create({}, disk_from="kept").disk_gib == 20
    kept.create({})
    with pytest.raises(Conflict, match="'kept' needs its disk itself"):
        room.machine("other").create({}, disk_from="kept")
    with pytest.raises(NotFound, match="no disk of a machine 'nobody' was kept"):
        room.machine("other").create({}, disk_from="nobody")


def test_a_qemu_that_lists_no_processors_is_said(room: Room) -> None:
    room.qemu.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(MachineError, match="does not list its processors"):
        room.machine().create({"cpu": "max"})


def test_processors_are_read_from_old_and_new_lists() -> None:
    old = "x86 Haswell               Intel Core\nx86 max\n\nRecognized CPUID flags:\n  fpu sse\n"
    assert cpu_models(old) == {"Haswell", "max"}
    assert cpu_models("Available CPUs:\n  a64fx\n  cortex-a57\n") >= {"a64fx", "cortex-a57"}


def test_pending_is_what_differs() -> None:
    now = MachineConfig(cpus=1, memory_mib=512, disk_gib=8, arch="amd64")
    assert pending(now, now) == {}
    assert pending(now, replace(now, cpus=2, kernel="6.1")) == {
        "cpus": {"now": 1, "next": 2},
        "kernel": {"now": "default", "next": "6.1"},
    }


@pytest.mark.skipif(os.name == "nt", reason="the processors are listed by a shell script")
def test_a_model_may_have_features(room: Room) -> None:
    assert room.machine().create({"cpu": "pc,+sse,pmu=off"}).cpu == "pc,+sse,pmu=off"
