"""Room that is kept on a disk for the day it is full: with none at all nothing can be deleted.

To remove an image or a container a database must be written, and to open one SQLite makes two
files. So a file lies beside each database that is removed, once, when the disk takes no more; it is
made again when there is room. It holds random bytes: file systems keep no room for zeros.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from wherry.osutil.files import atomic_write

NAME = "reserve"

SIZE = 2 << 20
"""Bytes: the files that SQLite makes to open a database, a heartbeat, some dozens of changes."""

ROOM = 16 << 20
"""Free bytes with which it is made again: with less it would take what somebody waits for."""

LITTLE = 512 << 10
"""Free bytes with which a change may fail."""


class Reserve:
    """The reserve in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / NAME

    def fill(self) -> None:
        """Make it when it is missing and there is room; what cannot be written is left."""
        with contextlib.suppress(OSError):  # the disk is as it is: there may be room another time
            if not self._file.exists() and _free(self._directory) >= ROOM + SIZE:
                atomic_write(self._file, os.urandom(SIZE))

    def release(self) -> bool:
        """Give its room to whoever needs it now. False: there was none."""
        try:
            self._file.unlink()
        except OSError:
            return False
        return True

    def release_when_full(self) -> bool:
        """The same, when the disk has hardly any room left."""
        return is_full(self._directory) and self.release()


def is_full(directory: Path) -> bool:
    """Whether the disk below has hardly any room left."""
    try:
        return _free(directory) < LITTLE
    except OSError:
        return False


def _free(directory: Path) -> int:
    return shutil.disk_usage(directory).free
