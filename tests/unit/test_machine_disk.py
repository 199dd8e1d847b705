"""The empty qcow2."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from wherry.errors import StorageError
from wherry.machine.disk import create_disk, disk_size, empty_qcow2, enlarge_disk

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


def test_a_disk_is_enlarged_and_never_made_smaller(tmp_path: Path) -> None:
    disk = tmp_path / "data.qcow2"
    create_disk(disk, 8 << 30)
    assert enlarge_disk(disk, 64 << 30)
    assert disk_size(disk) == 64 << 30
    assert not enlarge_disk(disk, 1 << 30)
    assert disk_size(disk) == 64 << 30


def test_what_is_no_disk_is_not_enlarged(tmp_path: Path) -> None:
    for content in (b"", b"precious" * 100):
        file = tmp_path / "data.qcow2"
        file.write_bytes(content)
        for work in (lambda path: disk_size(path), lambda path: enlarge_disk(path, 1 << 30)):
            with pytest.raises(StorageError, match="not a qcow2"):
                work(file)
        assert file.read_bytes() == content


def test_a_size_beyond_the_tables_is_refused(tmp_path: Path) -> None:
    disk = tmp_path / "data.qcow2"
    create_disk(disk, 8 << 30)
    before = disk.read_bytes()
    with pytest.raises(StorageError, match="cannot be given"):
        enlarge_disk(disk, 8 << 40)
    assert disk.read_bytes() == before


@needs_qemu_img
def test_an_enlarged_disk_keeps_its_content_and_qemu_finds_no_fault(tmp_path: Path) -> None:
    disk, raw = tmp_path / "data.qcow2", tmp_path / "raw"
    create_disk(disk, 1 << 20)
    raw.write_bytes(bytes(range(256)) * 4096)
    copy = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", raw, disk]
    subprocess.run(copy, check=True)
    # QEMU moves the L1 table when it enlarges an image itself: also that one is enlarged.
    subprocess.run(["qemu-img", "resize", "-q", disk, "2G"], check=True)
    assert enlarge_disk(disk, 3 << 40)
    subprocess.run(["qemu-img", "check", "-q", disk], check=True)
    back = tmp_path / "back"
    options = ["if=" + str(disk), "of=" + str(back), "bs=1M", "count=1", "-O", "raw", "-f", "qcow2"]
    subprocess.run(["qemu-img", "dd", *options], check=True)
    assert back.read_bytes()[: 1 << 20] == raw.read_bytes()
