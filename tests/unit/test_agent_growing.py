"""How large a file system is, and a disk that is not there."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_guest.agent.calls import Params
from wherry_guest.agent.growing import file_system_size, grow
from wherry_guest.channel import CallError


@given(st.integers(0, 2**48 - 1), st.sampled_from([0, 1, 2]), st.booleans())
def test_a_superblock_tells_blocks_and_their_size(blocks: int, log: int, wide: bool) -> None:
    superblock = bytearray(1024)
    struct.pack_into("<I", superblock, 0x04, blocks & 0xFFFFFFFF)
    struct.pack_into("<I", superblock, 0x18, log)
    struct.pack_into("<I", superblock, 0x60, 0x80 if wide else 0)
    struct.pack_into("<I", superblock, 0x150, blocks >> 32)
    expected = blocks if wide else blocks & 0xFFFFFFFF
    assert file_system_size(bytes(superblock)) == (expected, 1024 << log)


def test_a_disk_that_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "block").mkdir()
    params = Params({"disk_serial": "wherry-data", "bytes": 1})
    call = grow(None, params, tmp_path)  # type: ignore[arg-type]  # nothing is waited for
    with pytest.raises(CallError, match="no data disk"):
        call.send(None)
