from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_fakes import digest

from wherry.images import compress
from wherry.images.compress import PIECE_BYTES, DiffReader, decompress
from wherry.images.tar import LayerError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"


@pytest.fixture(params=["isal", "zlib"], autouse=True)
def inflate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds with the quick inflate and with the standard library's."""
    if request.param == "isal":
        pytest.importorskip("isal")
    else:
        monkeypatch.setattr(compress, "fast_zlib", zlib)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def unpack(data: bytes, size: int = 1000) -> bytes:
    return b"".join(decompress(pieces(data, size)))


CONTENT = bytes(range(256)) * 3000


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("size", [1, 7, 65536, 1 << 20])
def test_every_compression_is_recognised_however_it_arrives(
    pack: Callable[[bytes], bytes], size: int
) -> None:
    content = CONTENT[:5000] if size == 1 else CONTENT
    assert unpack(pack(content), size) == content


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress, bz2.compress, lzma.compress])
def test_members_and_frames_in_a_row_are_one_layer(pack: Callable[[bytes], bytes]) -> None:
    assert unpack(pack(b"one") + pack(b"") + pack(CONTENT)) == b"one" + CONTENT


def test_skippable_zstd_frames_are_skipped_wherever_they_stand() -> None:
    packed = zstd.compress(CONTENT)
    assert unpack(SKIPPABLE + packed + SKIPPABLE) == CONTENT


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("cut", [1, 4, 8, 100])
def test_truncated_data_is_an_error(pack: Callable[[bytes], bytes], cut: int) -> None:
    with pytest.raises(LayerError, match="too early"):
        unpack(pack(CONTENT)[:-cut])


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("tail", [b"\0", b"garbage after the end", b"\0" * 512])
def test_something_behind_the_end_is_an_error(pack: Callable[[bytes], bytes], tail: bytes) -> None:
    with pytest.raises(LayerError):
        unpack(pack(CONTENT) + tail)


def test_a_wrong_gzip_checksum_is_an_error() -> None:
    packed = bytearray(gzip.compress(CONTENT))
    packed[-6] ^= 1
    with pytest.raises(LayerError, match="damaged"):
        unpack(bytes(packed))


def test_a_well_compressed_bomb_comes_in_small_pieces_and_ends_at_the_limit() -> None:
    for packed in (gzip.compress(bytes(50 << 20)), zstd.compress(bytes(50 << 20))):
        reader = DiffReader(pieces(packed, 65536), 10 << 20)
        total = 0
        with pytest.raises(LayerError, match="more than 10 MiB"):
            while data := reader.read(1 << 20):
                assert len(data) <= PIECE_BYTES
                total += len(data)
        assert total <= 10 << 20


def test_the_reader_tells_the_diff_id_of_everything_that_was_read() -> None:
    reader = DiffReader(pieces(gzip.compress(CONTENT), 4096), 1 << 30)
    parts = []
    while data := reader.read(1234):
        assert len(data) <= 1234
        parts.append(data)
    assert b"".join(parts) == CONTENT
    assert (reader.diff_id, reader.count) == (digest(CONTENT), len(CONTENT))


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"]))
def test_any_bytes_are_unpacked_or_refused_without_a_crash(data: bytes, magic: bytes) -> None:
    try:
        unpack(magic + data, 10)
    except LayerError as error:
        assert "\n" not in error.message


@given(
    st.binary(max_size=2000),
    st.lists(st.integers(1, 500), min_size=1, max_size=20),
    st.sampled_from([gzip.compress, zstd.compress]),
)
def test_any_split_gives_the_same_bytes(data: bytes, sizes: list[int], pack: Any) -> None:
    packed = pack(data)
    chunks, at = [], 0
    for size in [*sizes, len(packed)]:
        chunks.append(packed[at : at + size])
        at += size
    assert b"".join(decompress(iter(chunks))) == data
