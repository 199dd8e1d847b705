"""Detach keys: the byte sequence that leaves a container running and ends the attach. Sans-I/O.

The notation is Docker's: keys separated by commas, each a single character or `ctrl-X` with X one
of `a`-`z`, `@`, `[`, `\\`, `]`, `^`, `_`.
"""

from __future__ import annotations

from wherry.errors import InvalidInput

DEFAULT = "ctrl-p,ctrl-q"


def parse_keys(keys: str) -> bytes:
    """The bytes that a terminal sends for `keys`. Raises InvalidInput."""
    return bytes(_key(key) for key in keys.split(","))


def _key(key: str) -> int:
    if len(key) == 1 and key.isascii():
        return ord(key)
    prefix, _, letter = key.partition("-")
    if prefix == "ctrl" and len(letter) == 1:
        if "a" <= letter <= "z":
            return ord(letter) - ord("a") + 1
        if letter in "@[\\]^_":
            return ord(letter) - ord("@")
    raise InvalidInput(
        f"{key!r} is not a detach key", hint="use letters and ctrl-X, as in ctrl-p,ctrl-q"
    )


class DetachScanner:
    """Finds the sequence in a stream of input. Bytes that may begin it are held back."""

    def __init__(self, sequence: bytes) -> None:
        self._sequence = sequence
        self._matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(bytes to pass on, True when the sequence is complete); what follows it is dropped."""
        passed = bytearray()
        for byte in data:
            if byte == self._sequence[self._matched]:
                self._matched += 1
                if self._matched == len(self._sequence):
                    return bytes(passed), True
                continue
            # As Docker's escape proxy: a broken match is passed on whole.
            passed += self._sequence[: self._matched]
            self._matched = 1 if byte == self._sequence[0] else 0
            if not self._matched:
                passed.append(byte)
        return bytes(passed), False
