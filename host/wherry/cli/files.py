"""Files that commands write and read: whole or not at all; standard input and output as `-`."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wherry.cli.output import write_all
from wherry.errors import InvalidInput, StorageError
from wherry.paths import example_path, foreign_path

READ_SIZE = 1 << 20
COPY_SIZE = 16 << 20
_NOT_BY_KERNEL = (errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
"""copy_file_range(2): not for these two files."""


def place_hint(path: Path | str) -> str | None:
    """What is wrong with a path of this computer that leads nowhere; None: nothing is known."""
    text = path.as_posix() if isinstance(path, Path) else path
    if (kind := foreign_path(text, sys.platform)) is not None:
        return f"that is {kind}; one of this computer looks like {example_path(sys.platform)}"
    from wherry.osutil.files import missing_drive  # here: for those for whom it went wrong

    drive = missing_drive(Path(path).absolute())
    return f"there is no drive {drive} now" if drive else None


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
    file = _named_file(output)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    except OSError as error:
        words = f"cannot write {output}: {error.strerror}"
        raise StorageError(words, hint=place_hint(output)) from error
    try:
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _named_file(output: Path) -> Path:
    """The file; raises InvalidInput when Windows has none of that name."""
    if sys.platform != "win32":
        return output
    from wherry.osutil.longpaths import extended
    from wherry.osutil.winnames import trouble

    if (reason := trouble(output.name)) is not None:
        raise InvalidInput(
            f"Windows cannot have the file {output}: {reason}",
            hint="choose another name, or redirect standard output",
        )
    return extended(output)


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
        words = f"cannot read {source}: {error.strerror}"
        raise InvalidInput(words, hint=place_hint(source)) from error


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


def copied(source: Path, size: int, descriptor: int) -> Iterator[int]:
    """Append a file of that size to what `descriptor` writes, by the kernel where it can; how many
    bytes were copied, step by step.

    Raises:
        StorageError: it cannot be read, or is shorter.
    """
    try:
        file = source.open("rb", buffering=0)
    except OSError as error:
        raise StorageError(f"cannot read {source}: {error.strerror}") from error
    with file:
        left = size
        by_kernel = hasattr(os, "copy_file_range")
        while left:
            count = min(left, COPY_SIZE)
            if by_kernel:
                try:
                    done = _by_kernel(file.fileno(), descriptor, count)
                except OSError as error:
                    if error.errno not in _NOT_BY_KERNEL:
                        raise
                    by_kernel = False  # a pipe, or two file systems
                    continue
            else:
                data = file.read(min(count, READ_SIZE))
                write_all(descriptor, data)
                done = len(data)
            if not done:
                raise StorageError(f"{source} is shorter than it was")
            left -= done
            yield done


def _by_kernel(source: int, target: int, count: int) -> int:
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "only Linux copies between files")
    return os.copy_file_range(source, target, count)
