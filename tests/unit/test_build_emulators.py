"""Emulators: which programs they run, and the layer that is made of their package."""

from __future__ import annotations

import hashlib
import stat
import struct
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from erofs_reader import Image
from hypothesis import given
from hypothesis import strategies as st
from vmimage_samples import deb, program

from wherry.build.emulators import EMULATORS, Emulator, EmulatorSource
from wherry.errors import ImageBuildError
from wherry_image.archive import Package
from wherry_image.foreign import EMULATOR_PACKAGE, QEMU_USER
from wherry_image.lock import Lock
from wherry_image.lockfiles import write_lock

NAMES = [emulator.architecture for emulator in EMULATORS]


def header(emulator: Emulator, kind: int, os_abi: int, padding: int = 0) -> bytes:
    """The beginning of a program, elf(5)."""
    order = ">" if emulator.order == 2 else "<"
    ident = struct.pack("4sBBBB8x", b"\x7fELF", emulator.bits, emulator.order, 1, os_abi)
    return ident + struct.pack(f"{order}HH", kind, emulator.machine) + bytes(40 + padding)


def runs(emulator: Emulator, start: bytes) -> bool:
    """As the kernel decides, fs/binfmt_misc.c."""
    begin = start[: len(emulator.magic)]
    both = zip(begin, emulator.magic, emulator.mask, strict=True)
    return all((here ^ wanted) & bits == 0 for here, wanted, bits in both)


@given(st.sampled_from(EMULATORS), st.sampled_from(EMULATORS), st.sampled_from([2, 3]),
       st.integers(0, 255))  # fmt: skip
def test_an_emulator_takes_its_own_programs_and_no_others(
    emulator: Emulator, other: Emulator, kind: int, os_abi: int
) -> None:
    assert runs(emulator, header(other, kind, os_abi)) == (emulator is other)


@pytest.mark.parametrize("kind", [1, 4])
def test_object_files_and_core_dumps_are_no_programs(kind: int) -> None:
    assert not any(runs(emulator, header(emulator, kind, 0)) for emulator in EMULATORS)


def test_the_numbers_are_those_of_qemus_own_registrations() -> None:
    """scripts/qemu-binfmt-conf.sh, `_magic`."""
    by_name = {emulator.architecture: emulator.magic for emulator in EMULATORS}
    assert by_name["arm64"].hex() == "7f454c460201010000000000000000000200b700"
    assert by_name["arm"].hex() == "7f454c4601010100000000000000000002002800"
    assert by_name["s390x"].hex() == "7f454c4602020100000000000000000000020016"


def test_a_probe_is_a_whole_program() -> None:
    emulator = next(it for it in EMULATORS if it.architecture == "386")
    probe = emulator.probe_program
    assert runs(emulator, probe)
    entry, segments = struct.unpack_from("<II", probe, 24)
    kind, offset, address, _, in_file, in_memory, flags = struct.unpack_from("<7I", probe, segments)
    assert (kind, offset, flags) == (1, 0, 5)  # PT_LOAD, readable and executable
    assert in_file == in_memory == len(probe)
    assert probe[entry - address :] == emulator.probe


@pytest.fixture
def source(tmp_path: Path) -> EmulatorSource:
    """A package of tiny emulators, which is in the cache already."""
    programs = {f"/usr/bin/{it.program}": program() + it.program.encode() for it in EMULATORS}
    return stock(tmp_path, programs)


def stock(directory: Path, files: dict[str, bytes]) -> EmulatorSource:
    data = deb({**files, "/usr/share/doc/qemu-user/copyright": b"GPL"})
    digest = hashlib.sha256(data).hexdigest()
    packages = directory / "packages"
    packages.mkdir(exist_ok=True)
    (packages / f"{digest}.deb").write_bytes(data)
    path = "debian/pool/main/q/qemu/qemu-user.deb"
    package = Package(EMULATOR_PACKAGE, "1:99", "amd64", digest, len(data), path)
    lock = Lock("amd64", datetime(2100, 1, 1, tzinfo=UTC), (EMULATOR_PACKAGE,), (package,))
    write_lock(directory / "locks" / "emulators-amd64.lock", lock)
    return EmulatorSource("amd64", packages, directory / "locks", directory / "layers")


def test_the_layer_has_the_emulators_of_other_architectures(source: EmulatorSource) -> None:
    assert source.find() is None
    phases: list[tuple[str, int, int]] = []
    layer = source.make(lambda *step: phases.append(step))
    assert phases[-1] == ("unpack", len(EMULATORS) - 1, len(EMULATORS) - 1)
    image = Image(layer.path)
    assert image.uuid.hex() == layer.uuid
    programs = {
        path.decode(): node for path, node in image.nodes.items() if stat.S_ISREG(node.mode)
    }
    names = {it.program for it in EMULATORS if it.architecture != "amd64"}
    assert set(programs) == {f"usr/bin/{name}" for name in names}
    assert {node.mode & 0o7777 for node in programs.values()} == {0o755}


def test_it_is_made_once(source: EmulatorSource) -> None:
    layer = source.make()
    assert source.find() == layer
    for package in source.packages.iterdir():
        package.unlink()
    assert source.make() == layer


def test_the_same_package_gives_the_same_layer(source: EmulatorSource, tmp_path: Path) -> None:
    other = replace(source, layers=tmp_path / "others").make()
    assert other.path.read_bytes() == source.make().path.read_bytes()


def test_a_newer_package_takes_the_place_of_an_older_one(
    source: EmulatorSource, tmp_path: Path
) -> None:
    old = source.make()
    programs = {f"/usr/bin/{it.program}": program() + b"newer" for it in EMULATORS}
    new = stock(tmp_path, programs).make()
    assert new.diff_id != old.diff_id
    assert (new.path.exists(), old.path.exists()) == (True, False)


def test_an_emulator_that_needs_libraries_is_refused(tmp_path: Path) -> None:
    programs = {f"/usr/bin/{it.program}": program("libc.so.6") for it in EMULATORS}
    with pytest.raises(ImageBuildError, match="is not a static program"):
        stock(tmp_path, programs).make()


def test_a_package_without_an_emulator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageBuildError, match="qemu-user has no qemu-aarch64, qemu-arm"):
        stock(tmp_path, {"/usr/bin/qemu-alpha": program()}).make()


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_the_shipped_locks_pin_one_package_each(arch: str) -> None:
    lock = QEMU_USER.lock(arch)
    assert [package.name for package in lock.packages] == [EMULATOR_PACKAGE]
    assert lock.packages[0].architecture == arch
