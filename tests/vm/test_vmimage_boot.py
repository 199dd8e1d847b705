"""The real image boots: every module loads, and everything that PID 1 needs is there and works."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from needs import require

from wherry_image import VmImage, build_image
from wherry_image.cpio import write_cpio
from wherry_image.tree import Tree

pytestmark = pytest.mark.vm

QEMU = {
    "amd64": ("qemu-system-x86", ["qemu-system-x86_64", "-M", "q35", "-cpu", "max,la57=off"]),
    "arm64": (
        "qemu-system-arm",
        ["qemu-system-aarch64", "-M", "virt", "-cpu", "max,pauth-impdef=on"],
    ),
}
"""Debian's package and the command."""
DEVICES = ["virtio-serial-pci", "virtio-scsi-pci", "virtio-rng-pci", "virtserialport,name=test"]
BOOT_SECONDS = 110
INITRD_LIMIT = 70_000_000
SMALLEST_GUEST_MIB = 384


@pytest.fixture(scope="module", params=["amd64", "arm64"])
def image(request: pytest.FixtureRequest, test_cache: Path) -> VmImage:
    return build_image(arch=request.param, packages=test_cache / "packages", out=test_cache / "vm")


def boot(image: VmImage, directory: Path, kernel: Path) -> dict[str, Any]:
    """Boot with the test's own PID 1 in the smallest guest; what it found out."""
    package, command = QEMU[image.arch]
    require(package, command[0])
    tree = Tree()
    source = Path(__file__).with_name("vmimage_init.py").read_bytes()
    tree.add_file("/init", b"#!/usr/bin/python3 -IBS\n" + source, 0o755)
    initrd = directory / "initrd"
    initrd.write_bytes(image.initrd.read_bytes() + write_cpio(tree, 0))
    options = ["-accel", "tcg", "-m", str(SMALLEST_GUEST_MIB), "-smp", "2", "-no-reboot"]
    options += ["-display", "none", "-nodefaults", "-serial", "stdio"]
    options += ["-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n,romfile="]
    for device in DEVICES:
        options += ["-device", device]
    boot = ["-kernel", os.fspath(kernel), "-initrd", os.fspath(initrd), "-append", image.cmdline]
    done = subprocess.run(
        [*command, *options, *boot],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=BOOT_SECONDS,
        check=False,
    )
    console = done.stdout.decode(errors="replace")
    facts = [line for line in console.splitlines() if line.startswith("FACTS ")]
    assert facts, f"no PID 1:\n{console[-2000:]}\n{done.stderr.decode()}"
    found: dict[str, Any] = json.loads(facts[0].removeprefix("FACTS "))
    return found


def check(facts: dict[str, Any]) -> None:
    assert "error" not in facts, facts
    assert not [key for key in facts if key.endswith(".ko")], "a module does not load"
    assert set(facts["modprobe"].values()) == {"ok"}
    assert {"virtio_scsi", "erofs", "overlay", "nf_tables", "zram", "veth"} <= set(facts["loaded"])
    assert {"ext4", "erofs", "overlay", "fuse", "cgroup2"} <= set(facts["filesystems"])
    assert {key: facts[key] for key in ("firewall", "nat", "mkfs", "fsck")} == {
        "firewall": "ok",
        "nat": "ok",
        "mkfs": "ok",
        "fsck": "ok",
    }
    assert facts["ports"], "virtio-serial has no port"


@pytest.mark.timeout(300)
def test_everything_that_pid_1_needs_is_in_the_image(image: VmImage, tmp_path: Path) -> None:
    check(boot(image, tmp_path, image.kernel))


@pytest.mark.timeout(300)
def test_the_uncompressed_kernel_boots_too(image: VmImage, tmp_path: Path) -> None:
    if image.fast_kernel == image.kernel:  # arm64's comes uncompressed, and was booted above
        assert image.arch == "arm64"
        return
    check(boot(image, tmp_path, image.fast_kernel))


def test_the_initrd_stays_small(image: VmImage) -> None:
    assert image.initrd.stat().st_size <= INITRD_LIMIT
