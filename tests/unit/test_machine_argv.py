"""The command line, as data."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from wherry.machine.argv import MemoryFile, VmSpec, qemu_argv
from wherry.machine.find import Qemu

SOCKETS = {
    name: f"fd={fd},server=on,wait=off"
    for name, fd in (("qmp", 10), ("rescue", 11), ("agent", 12), ("serial", 13))
}
SPEC = VmSpec(
    name="default",
    qemu=Qemu(binary=Path("/q/qemu-system-x86_64"), version=(9, 0, 0), arch="amd64"),
    accel="tcg",
    cpus=2,
    memory_mib=1024,
    kernel=Path("/i/kernel"),
    initrd=Path("/i/initrd"),
    cmdline="console=ttyS0 quiet",
    data_disk=Path("/m/da,ta.qcow2"),
    disk_bytes=1 << 36,
)
ARM = replace(
    SPEC, qemu=replace(SPEC.qemu, arch="arm64", binary=Path("/q/qemu-system-aarch64")), accel="hvf"
)


def values(argv: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(argv) if name == option]


@pytest.mark.parametrize("spec", [SPEC, ARM])
def test_every_machine_has_nothing_but_what_is_listed(spec: VmSpec) -> None:
    argv = qemu_argv(spec, SOCKETS)
    assert argv[0] == str(spec.qemu.binary)
    assert {"-nodefaults", "-no-user-config", "-no-reboot", "-S"} <= set(argv)
    drivers = [device.partition(",")[0] for device in values(argv, "-device")]
    assert drivers == [
        "virtio-serial-pci",
        "virtserialport",
        "virtio-scsi-pci",
        "virtio-blk-pci",
        "virtio-net-pci",
        "virtio-rng-pci",
        *(["vmgenid"] if spec.qemu.arch == "amd64" else []),
    ]


def test_each_architecture_has_its_board_and_processor() -> None:
    amd64, arm64 = qemu_argv(SPEC, SOCKETS), qemu_argv(ARM, SOCKETS)
    assert values(amd64, "-M")[0].startswith("q35")
    assert values(arm64, "-M")[0].startswith("virt")
    assert values(amd64, "-cpu")[0].startswith("max")
    assert values(arm64, "-cpu") == ["host"]
    assert (values(amd64, "-smp"), values(amd64, "-m")) == (["2"], ["1024"])


def test_qemu_listens_only_on_sockets_that_it_inherits() -> None:
    argv = qemu_argv(SPEC, SOCKETS)
    chardevs = values(argv, "-chardev")
    assert [
        part for device in chardevs for part in device.split(",") if part.startswith("fd=")
    ] == [
        "fd=10",
        "fd=11",
        "fd=13",
        "fd=12",
    ]
    assert all("server=on,wait=off" in device for device in chardevs)
    assert not any("path=" in device or "host=" in device for device in chardevs)


def test_the_agents_port_has_the_name_that_the_guest_looks_for() -> None:
    devices = values(qemu_argv(SPEC, SOCKETS), "-device")
    assert "virtserialport,bus=ports.0,chardev=agent,name=wherry.agent" in devices


def test_the_data_disk_gives_space_back_and_its_path_may_hold_anything() -> None:
    argv = qemu_argv(SPEC, SOCKETS)
    node = json.loads(values(argv, "-blockdev")[0])
    assert node["file"]["filename"] == str(SPEC.data_disk)
    assert (node["discard"], node["detect-zeroes"]) == ("unmap", "unmap")
    assert "virtio-blk-pci,drive=data,serial=wherry-data" in values(argv, "-device")


def test_a_machine_for_a_template_differs_in_what_is_behind_its_disk_and_memory() -> None:
    file = MemoryFile(Path("/t/r,am"), shared=True)
    template = qemu_argv(replace(SPEC, data_disk=None, memory_file=file), SOCKETS)
    whole = qemu_argv(SPEC, SOCKETS)
    path = str(file.path).replace(",", ",,")
    assert f"memory-backend-file,id=ram,size=1024M,mem-path={path},share=on" in template
    assert "memory-backend-ram,id=ram,size=1024M" in whole
    [nothing] = [json.loads(it) for it in values(template, "-blockdev")]
    assert (nothing["driver"], nothing["size"]) == ("null-co", SPEC.disk_bytes)
    assert values(template, "-device") == values(whole, "-device")
    differing = [one for one, other in zip(template, whole, strict=True) if one != other]
    assert len(differing) == 2
    assert "-incoming" in qemu_argv(replace(SPEC, incoming=True), SOCKETS)


def test_no_port_of_the_host_leads_into_the_guest() -> None:
    [network] = values(qemu_argv(SPEC, SOCKETS), "-netdev")
    assert network.startswith("user,")
    assert "hostfwd" not in network
    assert "guestfwd" not in network
