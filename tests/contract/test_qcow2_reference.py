"""Our reading of qcow2 beside QEMU's own tools: the same images are sound, leaking, damaged."""

from __future__ import annotations

import json
import random
import struct
import subprocess
from pathlib import Path

import pytest
from needs import require

from wherry.machine.disk import create_disk
from wherry.machine.qcow2 import check_disk

pytestmark = pytest.mark.contract

CLUSTER = 65536


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An image of ours that QEMU has written to, here and there."""
    for program in ("qemu-img", "qemu-io"):
        require("qemu-utils", program)
    path = tmp_path_factory.mktemp("qcow2") / "disk"
    create_disk(path, 8 << 30)
    generator = random.Random(7)
    orders = [f"write -P 1 {generator.randrange(0, 8 << 30, 512)} 100k" for _ in range(40)]
    orders += ["discard 0 1G", "write -z 2G 10M"]
    commands = [word for order in orders for word in ("-c", order)]
    subprocess.run(
        ["qemu-io", "-f", "qcow2", *commands, str(path)], check=True, capture_output=True
    )
    return path.read_bytes()


def reference(path: Path) -> tuple[bool, int]:
    """What qemu-img says: whether it is damaged, and bytes that leak."""
    done = subprocess.run(
        ["qemu-img", "check", "--output=json", "-f", "qcow2", str(path)],
        capture_output=True,
        check=False,
    )
    if done.returncode not in (0, 2, 3):
        return True, 0
    facts = json.loads(done.stdout)
    damaged = bool(facts.get("corruptions") or facts.get("check-errors"))
    return damaged, 0 if damaged else facts.get("leaks", 0) * CLUSTER


def ours(path: Path) -> tuple[bool, int]:
    report = check_disk(path)
    return bool(report.damages), 0 if report.damages else report.leaked


def test_a_used_disk_is_sound_for_both(tmp_path: Path, filled: bytes) -> None:
    path = tmp_path / "disk"
    path.write_bytes(filled)
    assert ours(path) == reference(path) == (False, 0)


@pytest.mark.parametrize("seed", range(12))
def test_a_wrong_reference_count_is_the_same_for_both(
    tmp_path: Path, filled: bytes, seed: int
) -> None:
    generator = random.Random(seed)
    image = bytearray(filled)
    block = struct.unpack_from(">Q", image, struct.unpack_from(">Q", image, 48)[0])[0]
    for _ in range(generator.randrange(1, 4)):
        cluster = generator.randrange(len(image) // CLUSTER)
        struct.pack_into(">H", image, block + 2 * cluster, generator.randrange(2))
    path = tmp_path / "disk"
    path.write_bytes(image)
    assert ours(path) == reference(path)
