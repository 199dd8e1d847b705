"""Decompress layers: gzip, zstd, bzip2, xz or none, told apart by their first bytes. Sans-I/O.

Chunks in, chunks out, of at most `PIECE_BYTES`, however well the input compresses. Truncated input
and anything behind the end of the compressed data are errors. Media types are not looked at: many
images say gzip and mean something else, and Docker looks at the bytes too.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from wherry.images.tar import LayerError

fast_zlib: Any
try:
    # 2.3 times as quick as the standard library's zlib (measured: 880 and 386 MB/s).
    from isal import isal_zlib as fast_zlib
except ImportError:  # no wheel for this system; the same interface and results
    fast_zlib = zlib

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_BYTES = 256 << 10
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = (b"\x2a\x4d\x18",)
"""zstd's skippable frames begin with 50 to 5f and these bytes (RFC 8878, section 3.1.2)."""

_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_GZIP_ERRORS: tuple[type[Exception], ...] = (zlib.error, fast_zlib.error)
_MAGIC_BYTES = 6
"""The longest of them: xz's."""

_XZ_MEMORY = 256 << 20
"""Bytes; `xz -9` needs 65 MiB."""

_ZSTD_WINDOW_LOG_MAX = 27
"""The most that `zstd --ultra` uses: 128 MiB; a frame that wants more is refused."""


class DiffReader:
    """An uncompressed layer as a file to read once, forward; counts and hashes what is read."""

    def __init__(self, chunks: Iterator[bytes], max_bytes: int) -> None:
        self._pieces = decompress(chunks)
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self._rest = b""
        self.count = 0

    @property
    def diff_id(self) -> str:
        """The digest of what was read so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def read(self, most: int = -1) -> bytes:
        """Up to `most` bytes; b"" at the end.

        Raises:
            LayerError: the compressed data is damaged, or there is more than the limit allows.
        """
        if not self._rest:
            self._rest = next(self._pieces, b"")
            self.count += len(self._rest)
            if self.count > self._max_bytes:
                raise LayerError(
                    f"the layer unpacks to more than {self._max_bytes >> 20} MiB",
                    hint="if it is known to be good, raise `image_limit_gib` in config.yml",
                )
            self._hash.update(self._rest)
        if most < 0 or most >= len(self._rest):
            data, self._rest = self._rest, b""
            return data
        data, self._rest = self._rest[:most], self._rest[most:]
        return data


def decompress(chunks: Iterator[bytes], what: str = "the layer") -> Iterator[bytes]:
    """The uncompressed bytes, in pieces of at most `PIECE_BYTES` (plain input: as it came).

    Args:
        what: it is called in messages.

    Raises:
        LayerError: truncated, damaged, or followed by something else.
    """
    start = b""
    for chunk in chunks:
        start += chunk
        if len(start) >= _MAGIC_BYTES:
            break
    rest = _chain(start, chunks)
    if start.startswith(GZIP_MAGIC):
        return _gunzip(rest, what)
    if start.startswith(ZSTD_MAGIC) or _is_skippable(start):
        return _unpack(rest, what, _zstd_format())
    for known in (_BZIP2, _XZ):
        if start.startswith(known.magic):
            return _unpack(rest, what, known)
    return rest


def _gunzip(chunks: Iterator[bytes], what: str) -> Iterator[bytes]:
    decoder: Any = fast_zlib.decompressobj(_GZIP_WINDOW)
    open_member = False
    try:
        for data in chunks:
            while data or open_member:
                if not open_member and not GZIP_MAGIC.startswith(data[:2]):
                    raise LayerError(f"something follows {what}'s gzip data", hint=_damaged(what))
                piece = decoder.decompress(data, PIECE_BYTES)
                open_member = True
                if piece:
                    yield piece
                if decoder.eof:  # gzip files may be several members in a row (RFC 1952, 2.2)
                    data = decoder.unused_data
                    decoder = fast_zlib.decompressobj(_GZIP_WINDOW)
                    open_member = False
                    continue
                data = decoder.unconsumed_tail
                if not data and len(piece) < PIECE_BYTES:
                    break
    except _GZIP_ERRORS as error:
        raise LayerError(f"{what}'s gzip data is damaged: {error}", hint=_damaged(what)) from error
    if open_member:
        raise LayerError(f"{what}'s gzip data ends too early", hint=_damaged(what))


@dataclass(frozen=True, slots=True)
class _Format:
    """A compression whose decoders have the interface of the standard library's newer ones.

    `begins`: whether a byte can be the first of one more frame.
    """

    name: str
    magic: bytes
    decoder: Callable[[], Any]
    begins: Callable[[int], bool]
    errors: tuple[type[Exception], ...]


def _unpack(chunks: Iterator[bytes], what: str, form: _Format) -> Iterator[bytes]:
    decoder = form.decoder()
    open_frame = False
    try:
        for data in chunks:
            while data or (open_frame and not decoder.needs_input):
                if not open_frame and not form.begins(data[0]):
                    words = f"something follows {what}'s {form.name} data"
                    raise LayerError(words, hint=_damaged(what))
                piece = decoder.decompress(data, PIECE_BYTES)
                open_frame = True
                data = b""  # what was not used stays in the decoder
                if piece:
                    yield piece
                if decoder.eof:
                    data = decoder.unused_data
                    decoder = form.decoder()
                    open_frame = False
    except form.errors as error:
        words = f"{what}'s {form.name} data is damaged: {error}"
        raise LayerError(words, hint=_damaged(what)) from error
    if open_frame:
        raise LayerError(f"{what}'s {form.name} data ends too early", hint=_damaged(what))


def _damaged(what: str) -> str:
    return f"{what} is damaged, or its upload was"


def _zstd_decoder() -> zstd.ZstdDecompressor:
    limit: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG_MAX}
    return zstd.ZstdDecompressor(options=limit)


def _zstd_format() -> _Format:
    def begins(byte: int) -> bool:
        return byte == ZSTD_MAGIC[0] or 0x50 <= byte <= 0x5F

    return _Format("zstd", ZSTD_MAGIC, _zstd_decoder, begins, (zstd.ZstdError,))


def _bzip2_decoder() -> Any:
    return bz2.BZ2Decompressor()


def _xz_decoder() -> Any:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


_BZIP2 = _Format("bzip2", b"BZh", _bzip2_decoder, lambda byte: byte == 0x42, (OSError,))
_XZ = _Format("xz", b"\xfd7zXZ\0", _xz_decoder, lambda byte: byte == 0xFD, (lzma.LZMAError,))


def _is_skippable(start: bytes) -> bool:
    return len(start) >= 4 and 0x50 <= start[0] <= 0x5F and start[1:4] in _SKIPPABLE


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest
