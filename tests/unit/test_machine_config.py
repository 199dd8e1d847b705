"""Sizes, names, and the machines on disk; initrds and records beside them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wherry.errors import Conflict, InvalidInput, MachineError, NotFound, StorageError
from wherry.machine import (
    MachineConfig,
    config,
    create_machine,
    default_config,
    list_machines,
    remove_machine,
)
from wherry.machine.config import read_config, write_config
from wherry.machine.initrd import BootFiles
from wherry.machine.record import QemuRecord, read_record, write_record
from wherry.osutil import ProcessIdentity, identify
from wherry.paths import Home
from wherry.settings import Settings

SMALL = MachineConfig(cpus=1, memory_mib=512, disk_gib=8, arch="amd64")


@pytest.mark.parametrize(
    ("cores", "memory_gib", "cpus", "memory_mib"),
    [(16, 64, 4, 4096), (2, 4, 2, 2048), (1, 1, 1, 512)],
)
def test_a_default_machine_takes_at_most_half_of_the_host(
    monkeypatch: pytest.MonkeyPatch, cores: int, memory_gib: int, cpus: int, memory_mib: int
) -> None:
    monkeypatch.setattr(config, "cpu_count", lambda: cores)
    monkeypatch.setattr(config, "total_memory", lambda: memory_gib << 30)
    made = default_config(Settings())
    assert (made.cpus, made.memory_mib, made.disk_gib) == (cpus, memory_mib, 64)


def test_settings_win_over_the_hosts_size() -> None:
    made = default_config(Settings(cpus=3, memory_mib=999, disk_gib=7))
    assert (made.cpus, made.memory_mib, made.disk_gib) == (3, 999, 7)


@pytest.mark.parametrize(
    "wrong",
    [{"cpus": 0}, {"memory_mib": 100}, {"disk_gib": 0}, {"arch": "riscv64"}, {"accel": "warp"}],
)
def test_impossible_sizes_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        MachineConfig(
            **{"cpus": 1, "memory_mib": 512, "disk_gib": 8, "arch": "amd64", **wrong}  # type: ignore[arg-type]  # wrong on purpose
        )


def test_a_stored_configuration_comes_back(tmp_path: Path) -> None:
    write_config(tmp_path / "machine.json", SMALL)
    assert read_config(tmp_path / "machine.json") == SMALL
    assert read_config(tmp_path / "none.json") is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"cpus": 1}'])
def test_a_damaged_configuration_is_a_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "machine.json").write_text(text)
    with pytest.raises(StorageError, match=r"machine\.json is damaged"):
        read_config(tmp_path / "machine.json")


@pytest.mark.parametrize("name", ["", "-x", "../up", "UPPER", "a" * 40, "a/b"])
def test_names_that_could_leave_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput):
        create_machine(Home(tmp_path), name, SMALL)


def test_machines_are_made_listed_and_removed(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert list_machines(home) == []
    for name in ("two", "one"):
        create_machine(home, name, SMALL)
    assert list_machines(home) == ["one", "two"]
    with pytest.raises(Conflict):
        create_machine(home, "one", SMALL)
    remove_machine(home, "one")
    assert list_machines(home) == ["two"]
    with pytest.raises(NotFound):
        remove_machine(home, "one")


def record(identity: ProcessIdentity) -> QemuRecord:
    return QemuRecord(identity, "b", "key", "digest", "tcg", 1, ("qemu", "-S"), ready=True)


def test_a_running_machine_is_not_removed(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    create_machine(home, "one", SMALL)
    us = identify(os.getpid())
    assert us is not None
    write_record(home.machine("one").qemu_record, record(us))
    with pytest.raises(Conflict, match="is running"):
        remove_machine(home, "one")


def test_a_record_comes_back_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    file = tmp_path / "qemu.json"
    written = record(ProcessIdentity(4711, "then"))
    write_record(file, written)
    assert read_record(file) == written
    file.write_text('{"identity": 5}')
    assert read_record(file) is None


def boot_files(directory: Path, digest: str = "d" * 64) -> BootFiles:
    initrd = directory / "initrd"
    initrd.write_bytes(b"070701" + b"i" * 1000)
    return BootFiles(directory, initrd, digest)


def test_the_archives_of_an_initrd_begin_at_multiples_of_4(tmp_path: Path) -> None:
    files = boot_files(tmp_path)
    files.keep_bytecode(b"070701bytecode00")
    combined = files.combined(b"070701agent").read_bytes()
    assert combined.startswith(b"070701iii")
    for part in (b"070701agent", b"070701bytecode00"):
        assert combined.index(part) % 4 == 0


def test_an_initrd_is_made_once_and_again_when_there_is_byte_code(tmp_path: Path) -> None:
    files = boot_files(tmp_path)
    first = files.combined(b"agent")
    written = first.stat().st_mtime_ns
    assert files.combined(b"agent").stat().st_mtime_ns == written
    files.keep_bytecode(b"070701xx")
    second = files.combined(b"agent")
    assert second != first


def test_files_of_agents_are_kept_side_by_side_until_they_are_many(tmp_path: Path) -> None:
    for number in range(6):
        files = boot_files(tmp_path, f"{number}" * 64)
        assert not files.bytecode.exists()
        files.keep_bytecode(b"070701xx")
        boot = files.combined(b"agent%d" % number)
        for file in (files.bytecode, boot):
            os.utime(file, ns=(number, number))
    kept = [path.name[9] for path in tmp_path.glob("bytecode-*")]
    assert sorted(kept) == ["2", "3", "4", "5"]
    assert len(list(tmp_path.glob("boot-*"))) == 4


def test_what_is_no_archive_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no cpio"):
        boot_files(tmp_path).keep_bytecode(b"\x7fELF")
