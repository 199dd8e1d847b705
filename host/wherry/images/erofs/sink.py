"""The image as it grows: contents are appended, inodes go to regions that were set aside before.

Rules: the file is written in big pieces; what nobody writes stays a hole of the file and reads as
zeros; this module knows offsets and blocks, nothing of files.
"""

from __future__ import annotations

from typing import BinaryIO

from wherry.errors import StorageError
from wherry.images.erofs.layout import BLOCK_SIZE, SLOT
from wherry.images.tar import LayerError

_BLOCKS_MAX = (1 << 32) - 1  # i_u.raw_blkaddr has 32 bits, and all ones is NULL_ADDRESS
_FLUSH_SIZE = 1 << 20
_ZEROS = bytes(1 << 20)
_HOLE_MIN = 64 << 10
_REGION_BLOCKS_MAX = 64


class Sink:
    """Appends to a seekable file; `end` is the image's size so far.

    Raises LayerError when the image grows beyond `limit` bytes, OSError as the file does.
    """

    __slots__ = ("_at", "_limit", "_out", "_pending", "_written", "end")

    def __init__(self, out: BinaryIO, limit: int) -> None:
        self._out = out
        self._limit = min(limit, _BLOCKS_MAX * BLOCK_SIZE)
        self._pending = bytearray()  # appended, not written
        self._at = 0  # where _pending goes
        self._written = 0  # the file's size
        self.end = 0
        out.seek(0)
        out.truncate(0)

    def append(self, data: bytes | bytearray) -> None:
        size = len(data)
        self.end += size
        if size < _HOLE_MIN:
            self._pending += data
            if len(self._pending) >= _FLUSH_SIZE:
                self.flush()
            return
        self.flush()
        if data[0] or data != _ZEROS[:size]:
            self.write_at(self._at, data)
        self._at = self.end

    def pad(self) -> None:
        """Zeros up to the next block."""
        if rest := -self.end & (BLOCK_SIZE - 1):
            self._pending += _ZEROS[:rest]
            self.end += rest

    def skip(self, size: int) -> int:
        """Leave out `size` bytes, zeros until somebody writes them; says where they begin."""
        at = self.end
        self.end += size
        if size < BLOCK_SIZE:
            self._pending += _ZEROS[:size]
        else:
            self.flush()
            self._at = self.end
        return at

    def flush(self) -> None:
        if self.end > self._limit:
            raise LayerError(f"the layer's image would be larger than {self._limit} bytes")
        if self._pending:
            self.write_at(self._at, self._pending)
            self._at += len(self._pending)
            self._pending.clear()

    def write_at(self, at: int, data: bytes | bytearray) -> None:
        """Fill in what was skipped, or change what was flushed."""
        self._out.seek(at)
        written = self._out.write(data)
        if written != len(data):
            raise StorageError(f"only {written} of {len(data)} bytes of an image were written")
        self._written = max(self._written, at + written)

    def close(self) -> None:
        """Give the file its final size; the file itself stays open."""
        self.flush()
        if self._written < self.end:  # truncate() does not lengthen every kind of file
            self.write_at(self.end - 1, b"\0")
        self._out.flush()


class Inodes:
    """Inodes and what follows them, in regions of a sink that grow from one block to many."""

    __slots__ = ("_base", "_blocks", "_buffer", "_room", "_sink")

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._buffer = bytearray()
        self._base = 0
        self._room = 0
        self._blocks = 1

    def put(self, head: bytes, tail: bytes = b"") -> int:
        """Place an inode (`head`: inode, xattrs, chunk map) and its inline data; returns its nid.

        Inline data must not cross a block's end: with a `tail`, both must fit in one block.
        """
        buffer = self._buffer
        at = len(buffer)
        size = len(head) + len(tail)
        if tail and (at & (BLOCK_SIZE - 1)) + size > BLOCK_SIZE:
            buffer += _ZEROS[: -at & (BLOCK_SIZE - 1)]
            at = len(buffer)
        if at + size > self._room:
            self.flush()
            self._room = max(self._blocks * BLOCK_SIZE, size + (-size & (BLOCK_SIZE - 1)))
            self._base = self._sink.skip(self._room)
            self._blocks = min(self._blocks * 2, _REGION_BLOCKS_MAX)
            at = 0
        buffer += head
        if tail:
            buffer += tail
        if rest := -size & (SLOT - 1):
            buffer += _ZEROS[:rest]
        return (self._base + at) // SLOT

    def flush(self) -> None:
        """Write the current region; the next inode begins a new one."""
        if self._buffer:
            self._sink.write_at(self._base, self._buffer)
            self._buffer.clear()
        self._room = 0
