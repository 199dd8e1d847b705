"""The empty qcow2."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from wherry.machine.disk import create_disk, empty_qcow2

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="no qemu-img here")


def test_the_header_says_version_3_and_the_size() -> None:
    image = empty_qcow2(64 << 30)
    assert struct.unpack_from(">4sI", image) == (b"QFI\xfb", 3)
    assert struct.unpack_from(">Q", image, 24) == (64 << 30,)
    assert len(image) == 4 * 65536


@pytest.mark.parametrize("size", [0, 511, -512, 1 << 50])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="cannot have"):
        empty_qcow2(size)


def test_an_existing_disk_is_never_replaced(tmp_path: Path) -> None:
    disk = tmp_path / "data.qcow2"
    disk.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        create_disk(disk, 1 << 30)
    assert disk.read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["data.qcow2"]


@needs_qemu_img
@pytest.mark.parametrize("size", [512, 1 << 29, (1 << 29) + 512, 64 << 30, 4 << 40])
def test_qemu_finds_no_fault_with_it(tmp_path: Path, size: int) -> None:
    disk = tmp_path / "data.qcow2"
    create_disk(disk, size)
    subprocess.run(["qemu-img", "check", "-q", disk], check=True)
    info = json.loads(
        subprocess.run(
            ["qemu-img", "info", "--output=json", disk], check=True, capture_output=True
        ).stdout
    )
    assert (info["format"], info["virtual-size"]) == ("qcow2", size)


@needs_qemu_img
def test_what_is_written_to_it_can_be_read_again(tmp_path: Path) -> None:
    disk, raw = tmp_path / "data.qcow2", tmp_path / "raw"
    create_disk(disk, 1 << 20)
    raw.write_bytes(bytes(range(256)) * 4096)
    copy = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", raw, disk]
    subprocess.run(copy, check=True)
    subprocess.run(["qemu-img", "check", "-q", disk], check=True)
    subprocess.run(["qemu-img", "compare", "-q", raw, disk], check=True)
