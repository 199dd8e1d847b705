"""The choice of an accelerator."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from wherry.errors import MachineError
from wherry.machine import payload
from wherry.machine.accel import (
    AccelChoice,
    ProbeResult,
    accel_option,
    candidate,
    choose_accel,
    cpu_model,
    kernel_options,
)
from wherry.machine.find import Qemu


class Prober:
    """Answers probes and counts them."""

    def __init__(self, works: bool) -> None:
        self.result = ProbeResult(works, "" if works else "it died")
        self.asked: list[str] = []

    def __call__(self, qemu: Qemu, accel: str) -> ProbeResult:
        self.asked.append(accel)
        return self.result


@pytest.fixture
def qemu(tmp_path: Path) -> Qemu:
    binary = tmp_path / "qemu"
    binary.write_text("1")
    return Qemu(binary=binary, version=(9, 0, 0), arch="amd64")


@pytest.fixture
def device(tmp_path: Path) -> Path:
    device = tmp_path / "kvm"
    device.write_text("")
    return device


def choose(
    qemu: Qemu, device: Path, prober: Prober, requested: str = "auto", hardware: str = "kvm"
) -> AccelChoice:
    cache = device.parent / "cache" / "probes.json"
    return choose_accel(qemu, requested, cache, probe=prober, hardware=hardware, device=device)


def test_hardware_that_passes_the_probe_is_used(qemu: Qemu, device: Path) -> None:
    assert choose(qemu, device, Prober(True)) == AccelChoice("kvm")


def test_hardware_that_fails_gives_tcg_and_says_so_once(qemu: Qemu, device: Path) -> None:
    prober = Prober(False)
    first = choose(qemu, device, prober)
    assert first.name == "tcg"
    assert first.note == "kvm does not work here (it died): using software emulation (tcg)"
    assert choose(qemu, device, prober) == AccelChoice("tcg")
    assert prober.asked == ["kvm"]


def test_another_qemu_binary_is_probed_anew(qemu: Qemu, device: Path) -> None:
    prober = Prober(False)
    choose(qemu, device, prober)
    qemu.binary.write_text("an upgraded one")
    choose(qemu, device, prober)
    assert prober.asked == ["kvm", "kvm"]


def test_a_damaged_cache_only_costs_a_probe(qemu: Qemu, device: Path) -> None:
    prober = Prober(True)
    choose(qemu, device, prober)
    (device.parent / "cache" / "probes.json").write_text("{")
    assert choose(qemu, device, prober).name == "kvm"
    assert prober.asked == ["kvm", "kvm"]


def test_a_host_without_kvm_is_not_probed(qemu: Qemu, tmp_path: Path) -> None:
    prober = Prober(True)
    assert choose(qemu, tmp_path / "none", prober) == AccelChoice("tcg")
    assert prober.asked == []


def test_tcg_when_asked_for_is_not_questioned(qemu: Qemu, device: Path) -> None:
    prober = Prober(True)
    assert choose(qemu, device, prober, "tcg") == AccelChoice("tcg")
    assert prober.asked == []


def test_an_accelerator_that_was_asked_for_must_work(qemu: Qemu, device: Path) -> None:
    with pytest.raises(MachineError, match="kvm does not work here: it died"):
        choose(qemu, device, Prober(False), "kvm")


def test_windows_is_told_how_to_have_its_hypervisor(qemu: Qemu, device: Path) -> None:
    refuses, cache = Prober(False), device.parent / "cache" / "probes.json"
    found = choose_accel(qemu, "auto", cache, probe=refuses, hardware="whpx", device=device)
    assert found.name == "tcg"
    assert "HypervisorPlatform" in (found.note or "")
    with pytest.raises(MachineError) as caught:
        choose_accel(qemu, "whpx", cache, probe=refuses, hardware="whpx", device=device)
    assert "HypervisorPlatform" in (caught.value.hint or "")
    assert "WHERRY_ACCEL" in (caught.value.hint or "")


def test_an_unknown_accelerator_is_an_error(qemu: Qemu, device: Path) -> None:
    with pytest.raises(MachineError, match="unknown accelerator 'warp'"):
        choose(qemu, device, Prober(True), "warp")


@pytest.mark.parametrize(
    ("arch", "system", "host", "expected"),
    [
        ("amd64", "linux", "amd64", "kvm"),
        ("arm64", "darwin", "arm64", "hvf"),
        ("amd64", "win32", "amd64", "whpx"),
        ("arm64", "linux", "amd64", None),
        ("amd64", "freebsd", "amd64", None),
    ],
)
def test_each_system_has_its_hardware_accelerator(
    arch: str, system: str, host: str, expected: str | None
) -> None:
    assert candidate(arch, system=system, host=host) == expected


def test_hardware_gets_the_hosts_processor_and_emulation_a_rich_one() -> None:
    assert cpu_model("amd64", "kvm") == cpu_model("arm64", "hvf") == "host"
    assert cpu_model("amd64", "tcg").startswith("max")


def test_only_emulated_kernels_are_told_to_leave_out_mitigations() -> None:
    assert kernel_options("amd64", "kvm") == kernel_options("arm64", "hvf") == ""
    assert kernel_options("amd64", "tcg").split() == ["mitigations=off", "no_timer_check"]
    assert kernel_options("arm64", "tcg") == "mitigations=off"


@pytest.mark.parametrize(
    ("version", "thread"), [((7, 2, 22), "single"), ((8, 0, 5), "single"), ((8, 1, 0), "multi")]
)
def test_emulation_is_parallel_only_where_qemu_survives_patched_code(
    version: tuple[int, int, int], thread: str
) -> None:
    qemu = Qemu(binary=Path("q"), version=version, arch="amd64")
    assert f"thread={thread}" in accel_option(qemu, "tcg")


def test_the_amd64_program_starts_at_the_reset_vector() -> None:
    rom = payload.amd64_rom()
    assert len(rom) == 65536
    assert rom[0xFFF0] == 0xE9
    (offset,) = struct.unpack_from("<h", rom, 0xFFF1)
    assert (0xFFF3 + offset) & 0xFFFF == 0xF000
    assert rom[0xF000] == 0xFA


def test_the_far_jumps_of_the_amd64_program_meet_their_targets() -> None:
    code = payload.amd64_rom()[0xF000:0xF100]
    protected = struct.unpack_from("<I", code, code.index(bytes.fromhex("66ea")) + 2)[0] - 0xFF000
    assert code[protected:].startswith(bytes.fromhex("b810000000"))
    gdt = code.index(bytes.fromhex("1f00"), 0xA0)
    assert struct.unpack_from("<H", code, 6)[0] == 0xF000 + gdt
    assert struct.unpack_from("<I", code, gdt + 2)[0] == 0xFF000 + gdt + 6
