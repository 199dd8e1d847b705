"""Guest memory as a file: mostly zeros, so mostly holes. Blocking.

A digest is over what is not zero, page by page with its number: a hole and a written zero are the
same, as they are for the guest.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from wherry.osutil import sync_descriptor
from wherry.osutil.sparse import lengthen, mark_sparse

PAGE = 4096
_CHUNK = 1 << 20
_ZERO = bytes(PAGE)


def make_memory(file: Path, size: int) -> None:
    """A new file of zeros, which takes no space. Raises OSError."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        mark_sparse(descriptor)
        lengthen(descriptor, size)
    finally:
        os.close(descriptor)


def copy_memory(source: Path, target: Path) -> str:
    """Copy without the zeros, synced, to a new file. Returns the digest. Raises OSError."""
    make_memory(target, source.stat().st_size)
    digest = hashlib.sha256()
    with target.open("r+b") as copy:
        for offset, data in _runs(source):
            _update(digest, offset, data)
            copy.seek(offset)
            copy.write(data)
        copy.flush()
        sync_descriptor(copy.fileno())
    return digest.hexdigest()


def memory_digest(file: Path) -> str:
    """SHA-256 (hex) of a memory file. Raises OSError."""
    digest = hashlib.sha256()
    for offset, data in _runs(file):
        _update(digest, offset, data)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, offset: int, data: bytes) -> None:
    for start in range(0, len(data), PAGE):
        digest.update(((offset + start) // PAGE).to_bytes(8, "big"))
        digest.update(data[start : start + PAGE])


def _runs(file: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of all runs of pages that are not zero, in order, at most _CHUNK long."""
    with file.open("rb", buffering=0) as memory:
        descriptor = memory.fileno()
        size = os.fstat(descriptor).st_size
        offset = 0
        while (offset := _next_data(descriptor, offset, size)) < size:
            memory.seek(offset)
            chunk = memory.read(_CHUNK)
            if not chunk:
                return
            yield from _nonzero(offset, chunk)
            offset += len(chunk)


def _next_data(descriptor: int, offset: int, size: int) -> int:
    """Where the next page with data begins; `size` when there is none."""
    seek_data = getattr(os, "SEEK_DATA", None)
    if seek_data is None or offset >= size:
        return offset
    try:
        found = os.lseek(descriptor, offset, seek_data)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a hole up to the end, lseek(2)
            return size
        raise
    return found - found % PAGE


def _nonzero(offset: int, chunk: bytes) -> Iterator[tuple[int, bytes]]:
    start = None
    for at in range(0, len(chunk), PAGE):
        page = chunk[at : at + PAGE]
        if page == _ZERO[: len(page)]:
            if start is not None:
                yield offset + start, chunk[start:at]
            start = None
        elif start is None:
            start = at
    if start is not None:
        yield offset + start, chunk[start:]
