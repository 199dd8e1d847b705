"""Disk images: sound ones, and each way in which they are damaged. None needs QEMU's tools."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.machine.disk import empty_qcow2
from wherry.machine.qcow2 import DiskReport, check_disk

CLUSTER = 65536
SIZE = 1 << 30


def write(path: Path, data: bytes | bytearray) -> Path:
    path.write_bytes(data)
    return path


def disk_with_data() -> bytearray:
    """An image with one L2 table (cluster 4) and one cluster of data (5), both counted."""
    image = bytearray(empty_qcow2(SIZE)) + bytearray(2 * CLUSTER)
    struct.pack_into(">Q", image, 3 * CLUSTER, (1 << 63) | 4 * CLUSTER)  # L1: copied, L2 here
    struct.pack_into(">Q", image, 4 * CLUSTER, (1 << 63) | 5 * CLUSTER)
    for cluster in (4, 5):
        struct.pack_into(">H", image, 2 * CLUSTER + 2 * cluster, 1)
    return image


def test_an_empty_disk_is_sound(tmp_path: Path) -> None:
    assert check_disk(write(tmp_path / "d", empty_qcow2(SIZE))) == DiskReport(size=SIZE)


def test_a_disk_with_data_is_sound(tmp_path: Path) -> None:
    assert check_disk(write(tmp_path / "d", disk_with_data())) == DiskReport(size=SIZE)


def test_what_is_counted_and_not_used_is_a_leak(tmp_path: Path) -> None:
    image = disk_with_data()
    struct.pack_into(">Q", image, 4 * CLUSTER, 0)
    report = check_disk(write(tmp_path / "d", image))
    assert (report.damages, report.leaked) == ((), CLUSTER)


def test_what_is_used_and_not_counted_is_a_damage(tmp_path: Path) -> None:
    image = disk_with_data()
    struct.pack_into(">H", image, 2 * CLUSTER + 2 * 5, 0)
    (damage,) = check_disk(write(tmp_path / "d", image)).damages
    assert damage.startswith("1 clusters are used without being counted")
    assert str(5 * CLUSTER) in damage


def test_two_places_that_share_a_cluster_are_a_damage(tmp_path: Path) -> None:
    image = disk_with_data()
    struct.pack_into(">Q", image, 4 * CLUSTER + 8, (1 << 63) | 5 * CLUSTER)
    assert check_disk(write(tmp_path / "d", image)).damages


def test_a_disk_that_runs_has_only_its_header_looked_at(tmp_path: Path) -> None:
    image = disk_with_data()
    struct.pack_into(">H", image, 2 * CLUSTER + 2 * 5, 0)
    assert check_disk(write(tmp_path / "d", image), tables=False) == DiskReport(size=SIZE)


@pytest.mark.parametrize(
    ("offset", "form", "value", "words"),
    [
        (0, ">I", 0, "not a qcow2 image"),
        (4, ">I", 9, "version 9"),
        (20, ">I", 40, "clusters of 2^40"),
        (24, ">Q", 1 << 60, "too small"),
        (36, ">I", 1 << 30, "cannot have"),
        (40, ">Q", 12345, "no place for it"),
        (40, ">Q", 1 << 40, "cut off: its L1 table"),
        (48, ">Q", 0, "no place for it"),
        (72, ">Q", 2, "marked it as corrupt"),
        (72, ">Q", 1 << 40, "unknown"),
        (96, ">I", 9, "reference counts of 2^9 bits"),
        (3 * CLUSTER, ">Q", 1 << 40, "cut off: an L2 table"),
        (3 * CLUSTER, ">Q", 4 * CLUSTER + 512, "no cluster's beginning"),
        (CLUSTER, ">Q", 1 << 40, "cut off: a block of reference counts"),
    ],
)
def test_a_damaged_field_is_named(
    tmp_path: Path, offset: int, form: str, value: int, words: str
) -> None:
    image = disk_with_data()
    struct.pack_into(form, image, offset, value)
    assert words in "; ".join(check_disk(write(tmp_path / "d", image)).damages)


def test_an_image_that_was_not_closed_is_dirty_and_no_damage(tmp_path: Path) -> None:
    image = disk_with_data()
    struct.pack_into(">Q", image, 72, 1)
    assert check_disk(write(tmp_path / "d", image)) == DiskReport(size=SIZE, dirty=True)


@given(st.integers(0, 6 * CLUSTER), st.binary(min_size=1, max_size=64))
def test_any_damage_is_read_without_an_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, noise: bytes
) -> None:
    image = disk_with_data()
    image[at : at + len(noise)] = noise
    path = write(tmp_path_factory.getbasetemp() / "noise", image)
    assert isinstance(check_disk(path), DiskReport)


@given(st.integers(0, 6 * CLUSTER))
def test_any_beginning_of_an_image_is_read_without_an_error(
    tmp_path_factory: pytest.TempPathFactory, length: int
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "cut", disk_with_data()[:length])
    report = check_disk(path)
    assert report.damages or length > 4 * CLUSTER
