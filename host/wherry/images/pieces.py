"""Bytes that come in pieces, read as a file is."""

from __future__ import annotations

from collections.abc import Iterator


class Pieces:
    """An iterator as a file to read once, forward."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, most: int, /) -> bytes:
        """At most so many bytes, at least one; b"" at the end."""
        if not self._rest:
            self._rest = next(self._pieces, b"")
        data, self._rest = self._rest[:most], self._rest[most:]
        return data
