"""Files that commands write and read: whole or not at all; standard input and output as `-`."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wherry.errors import InvalidInput, StorageError

READ_SIZE = 1 << 20


@contextmanager
def target(output: Path | None) -> Iterator[int]:
    """A descriptor of standard output, or of a file that gets its name when it is complete.

    Raises:
        StorageError: the file cannot be made. InvalidInput: standard output is a terminal.
    """
    if output is None:
        if sys.stdout.isatty():
            raise InvalidInput(
                "refusing to write a tar to a terminal", hint="use -o, or redirect it"
            )
        yield 1
        return
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{output.name}-", dir=output.parent)
    except OSError as error:
        raise StorageError(f"cannot write {output}: {error.strerror}") from error
    try:
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        Path(name).replace(output)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def pieces(source: Path | None, what: str) -> Iterator[bytes]:
    """The contents of a file, or of standard input (None or `-`). `what` it is, for messages.

    Raises:
        InvalidInput: it cannot be read; standard input is a terminal.
    """
    if source is None or str(source) == "-":
        if sys.stdin.isatty():
            raise InvalidInput(f"{what} is expected on standard input", hint="or name a file")
        return _read(0)
    try:
        return _closing(os.open(source, os.O_RDONLY | getattr(os, "O_BINARY", 0)))
    except OSError as error:
        raise InvalidInput(f"cannot read {source}: {error.strerror}") from error


def _closing(descriptor: int) -> Iterator[bytes]:
    try:
        yield from _read(descriptor)
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> Iterator[bytes]:
    try:
        while data := os.read(descriptor, READ_SIZE):
            yield data
    except OSError as error:
        raise InvalidInput(f"cannot read the input: {error.strerror}") from error
