"""Windows' limit of 260 characters for a path, and the ways around it. Elsewhere all is as it was.

    extended      for files that we open: `\\\\?\\C:\\…` has no limit, and is taken as it is written
    for_programs  for files that QEMU opens, by calls that know neither such names nor letters
                  beyond one code page: the short names that Windows keeps beside the long ones

Source: Microsoft, Maximum Path Length Limitation; Naming Files, Paths, and Namespaces.
"""

from __future__ import annotations

import ctypes
import ntpath
import os
import sys
from collections.abc import Callable
from pathlib import Path

from wherry.errors import StorageError

LIMIT = 259
"""Characters of a path: MAX_PATH less the NUL."""

_DIRECTORY_LIMIT = 257
"""Of the directory that a program is started in: a backslash follows (CreateProcessW)."""

_PREFIX = "\\\\?\\"
_SHARE_PREFIX = "\\\\?\\UNC\\"
_UTF8 = 65001


def extended(path: Path) -> Path:
    """`path`, absolute, in the form without a limit."""
    return Path(extended_text(os.fspath(path.absolute()))) if sys.platform == "win32" else path


def extended_text(path: str) -> str:
    """The same of an absolute path of Windows. Pure: for paths of other processes, and tests."""
    if path.startswith(_PREFIX):
        return path
    clean = ntpath.normpath(path)  # behind the prefix `..` and `/` are names like any other
    if clean.startswith("\\\\"):
        return _SHARE_PREFIX + clean[2:]
    return _PREFIX + clean


def plain_text(path: str) -> str:
    """For people, and for who cannot read the prefix."""
    if path.startswith(_SHARE_PREFIX):
        return "\\\\" + path[len(_SHARE_PREFIX) :]
    return path.removeprefix(_PREFIX)


def for_programs(path: Path) -> Path:
    """A name of the existing file `path` that QEMU can open.

    Raises:
        StorageError: there is none: too long, or letters that it cannot have, and no short name.
    """
    if sys.platform != "win32":
        return path
    kernel32 = ctypes.WinDLL("kernel32")
    every_letter = kernel32.GetACP() == _UTF8
    return Path(narrow_text(os.fspath(path.absolute()), _short_name, every_letter=every_letter))


def narrow_text(path: str, short_name: Callable[[str], str], *, every_letter: bool) -> str:
    """`for_programs`, without a system.

    Args:
        short_name: of a path in the extended form; "": it has none.
        every_letter: the system's code page has all.
    """

    def fits(text: str) -> bool:
        return 0 < len(text) <= LIMIT and (every_letter or text.isascii())

    text = plain_text(path)
    if fits(text):
        return text
    short = plain_text(short_name(extended_text(path)))
    if fits(short):
        return short
    what = f"its path has {len(text)} characters" if len(text) > LIMIT else "letters beyond ASCII"
    raise StorageError(
        f"QEMU cannot open {text}: {what}, and its drive keeps no short names",
        hint=f"set WHERRY_HOME to a short directory of plain letters, as in {text[:3]}wherry",
    )


def working_directory(path: Path) -> Path:
    """`path`, or where it is too long to start a program in, the root of its drive."""
    if sys.platform != "win32":
        return path
    return Path(directory_text(os.fspath(path.absolute())))


def directory_text(path: str) -> str:
    """`working_directory`, without a system."""
    text = plain_text(path)
    return text if len(text) <= _DIRECTORY_LIMIT else ntpath.splitdrive(text)[0] + "\\"


def _short_name(path: str) -> str:
    """GetShortPathNameW; "" when it fails."""
    if sys.platform != "win32":
        return ""
    kernel32 = ctypes.WinDLL("kernel32")
    buffer = ctypes.create_unicode_buffer(len(path) + 1)  # never longer than the long one
    length = kernel32.GetShortPathNameW(path, buffer, len(buffer))
    return buffer.value if 0 < length < len(buffer) else ""
