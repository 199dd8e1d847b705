"""Windows' console: raw mode, what is typed, what is written. `terminal` is the way here.

Rules: what is typed is read as UTF-16, since a console's code page has not every letter; what is
written is UTF-8, for as long as we write; modes and code page are afterwards what they were. The
console is reached through `Kernel32`, so that tests can play one on any system.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from typing import Any, Protocol

_ENABLE_PROCESSED_INPUT = 0x0001
_ENABLE_LINE_INPUT = 0x0002
_ENABLE_ECHO_INPUT = 0x0004
_ENABLE_VIRTUAL_TERMINAL_INPUT = 0x0200
_ENABLE_PROCESSED_OUTPUT = 0x0001
_ENABLE_VIRTUAL_TERMINAL_PROCESSING = 0x0004
_DISABLE_NEWLINE_AUTO_RETURN = 0x0008
"""Windows, consoleapi.h. Without the last a line feed would also return to the first column."""

_COOKED = _ENABLE_PROCESSED_INPUT | _ENABLE_LINE_INPUT | _ENABLE_ECHO_INPUT
_VT_OUTPUT = _ENABLE_PROCESSED_OUTPUT | _ENABLE_VIRTUAL_TERMINAL_PROCESSING

_UTF8_BYTES = 3
"""Of a UTF-16 code unit, at most."""

_UTF8 = 65001
"""The code page's number, winnls.h CP_UTF8."""

_ERROR_OPERATION_ABORTED = 995
"""winerror.h: Ctrl-C while a line was typed."""

_READ_UNITS = 4096
"""A console before Windows 10 has no room for a buffer of more than 64 KiB."""

_END_OF_FILE = "\x1a"
"""Ctrl-Z at the beginning of a line, as in all of Windows."""


class Kernel32(Protocol):
    """The few calls to a console."""

    def mode(self, handle: int) -> int | None:
        """None: it is no console."""

    def set_mode(self, handle: int, mode: int) -> bool:
        """False: this console has not such a mode."""

    def read(self, handle: int, units: int) -> str:
        """Wait for input; at most so many UTF-16 code units, half a pair is a character of its own.
        May be empty. Raises OSError."""

    def output_code_page(self) -> int: ...

    def set_output_code_page(self, page: int) -> None: ...


@contextlib.contextmanager
def raw_console(kernel32: Kernel32, stdin: int, stdout: int) -> Iterator[None]:
    """Keys arrive as typed, Ctrl-C among them, arrows as VT sequences; VT sequences are obeyed.

    Args:
        stdin, stdout: handles; one that is no console is left alone.
    """
    with contextlib.ExitStack() as stack:
        if (mode := kernel32.mode(stdin)) is not None:
            raw = mode & ~_COOKED
            stack.callback(kernel32.set_mode, stdin, mode)
            _first_that_is_known(
                kernel32, stdin, (raw | _ENABLE_VIRTUAL_TERMINAL_INPUT, raw)
            )  # the second: Windows before 10, whose arrow keys do nothing
        if (mode := kernel32.mode(stdout)) is not None:
            stack.callback(kernel32.set_mode, stdout, mode)
            vt = mode | _VT_OUTPUT
            _first_that_is_known(kernel32, stdout, (vt | _DISABLE_NEWLINE_AUTO_RETURN, vt))
        yield


@contextlib.contextmanager
def utf8_output(kernel32: Kernel32, *outputs: int) -> Iterator[None]:
    """Bytes that are written to consoles among the handles `outputs` are UTF-8."""
    page = kernel32.output_code_page()
    if page == _UTF8 or all(kernel32.mode(handle) is None for handle in outputs):
        yield
        return
    kernel32.set_output_code_page(_UTF8)
    try:
        yield
    finally:
        kernel32.set_output_code_page(page)


class ConsoleInput:
    """What is typed, as UTF-8. In cooked mode a line ends with `\\n`, Ctrl-Z ends it all."""

    def __init__(self, kernel32: Kernel32, handle: int) -> None:
        self._kernel32 = kernel32
        self._handle = handle
        self._half = ""

    def read(self, limit: int) -> bytes:
        """Wait for input: at most `limit` bytes, b"" at the end. Raises OSError."""
        units = min(_READ_UNITS, max(1, limit // _UTF8_BYTES - 1))
        while True:
            text = self._half + self._kernel32.read(self._handle, units)
            cooked = (self._kernel32.mode(self._handle) or 0) & _ENABLE_LINE_INPUT
            if cooked and text.startswith(_END_OF_FILE):
                return b""
            self._half = ""
            if "\ud800" <= text[-1:] <= "\udbff":  # the other half of the letter comes next
                text, self._half = text[:-1], text[-1]
            if text:
                return _utf8(text.replace("\r\n", "\n") if cooked else text)


def _first_that_is_known(kernel32: Kernel32, handle: int, modes: tuple[int, ...]) -> None:
    for mode in modes:
        if kernel32.set_mode(handle, mode):
            return


def _utf8(text: str) -> bytes:
    """Of UTF-16 code units: pairs become one letter."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


class SystemKernel32:
    """This system's, on Windows."""

    def __init__(self) -> None:
        if sys.platform != "win32":
            raise OSError("only on Windows")
        self._dll: Any = ctypes.WinDLL("kernel32", use_last_error=True)

    def mode(self, handle: int) -> int | None:
        mode = ctypes.c_uint32()
        found = self._dll.GetConsoleMode(ctypes.c_void_p(handle), ctypes.byref(mode))
        return mode.value if found else None

    def set_mode(self, handle: int, mode: int) -> bool:
        return bool(self._dll.SetConsoleMode(ctypes.c_void_p(handle), mode))

    def read(self, handle: int, units: int) -> str:
        if sys.platform != "win32":
            raise OSError("only on Windows")
        buffer = (ctypes.c_uint16 * units)()
        count = ctypes.c_uint32()
        console = ctypes.c_void_p(handle)
        if not self._dll.ReadConsoleW(console, buffer, units, ctypes.byref(count), None):
            error = ctypes.get_last_error()
            if error == _ERROR_OPERATION_ABORTED:
                return ""
            raise ctypes.WinError(error)
        return "".join(map(chr, buffer[: count.value]))

    def output_code_page(self) -> int:
        return int(self._dll.GetConsoleOutputCP())

    def set_output_code_page(self, page: int) -> None:
        self._dll.SetConsoleOutputCP(page)
