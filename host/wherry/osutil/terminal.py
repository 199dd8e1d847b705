"""The terminal: raw mode, its size, and being told when that changes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

_RESIZE_POLL_SECONDS = 0.25
"""Windows sends no signal when a console's size changes."""


def terminal_size(descriptor: int) -> tuple[int, int]:
    """(rows, columns); (0, 0) when the descriptor is no terminal."""
    try:
        size = os.get_terminal_size(descriptor)
    except OSError:
        return 0, 0
    return size.lines, size.columns


@contextlib.contextmanager
def raw_mode(descriptor: int) -> Iterator[None]:
    """While the block runs keys arrive as typed, Ctrl-C included, and nothing is echoed."""
    if sys.platform == "win32":
        with _windows_raw_mode():
            yield
        return
    import termios
    import tty

    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def on_resize(descriptor: int, callback: Callable[[int, int], None]) -> Iterator[None]:
    """Call `callback(rows, columns)` on each change of size. Main thread only, but on Windows."""
    if sys.platform == "win32":
        with _polled_resize(descriptor, callback):
            yield
        return
    before = signal.signal(signal.SIGWINCH, lambda *_: callback(*terminal_size(descriptor)))
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


@contextlib.contextmanager
def _polled_resize(descriptor: int, callback: Callable[[int, int], None]) -> Iterator[None]:
    done = threading.Event()

    def watch() -> None:
        known = terminal_size(descriptor)
        while not done.wait(_RESIZE_POLL_SECONDS):
            if (size := terminal_size(descriptor)) != known:
                known = size
                callback(*size)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


_ENABLE_PROCESSED_INPUT = 0x0001
_ENABLE_LINE_INPUT = 0x0002
_ENABLE_ECHO_INPUT = 0x0004
_ENABLE_VIRTUAL_TERMINAL_INPUT = 0x0200
_ENABLE_VIRTUAL_TERMINAL_PROCESSING = 0x0004
_STD_INPUT_HANDLE = -10
_STD_OUTPUT_HANDLE = -11
"""Windows, consoleapi.h and winbase.h."""


@contextlib.contextmanager
def _windows_raw_mode() -> Iterator[None]:
    if sys.platform != "win32":
        raise OSError("only on Windows")
    import ctypes

    kernel32 = ctypes.windll.kernel32
    modes = []
    cooked = _ENABLE_PROCESSED_INPUT | _ENABLE_LINE_INPUT | _ENABLE_ECHO_INPUT
    for which, clear, add in (
        (_STD_INPUT_HANDLE, cooked, _ENABLE_VIRTUAL_TERMINAL_INPUT),
        (_STD_OUTPUT_HANDLE, 0, _ENABLE_VIRTUAL_TERMINAL_PROCESSING),
    ):
        handle = kernel32.GetStdHandle(which)
        mode = ctypes.c_uint32()
        if kernel32.GetConsoleMode(handle, ctypes.byref(mode)):
            modes.append((handle, mode.value))
            kernel32.SetConsoleMode(handle, (mode.value & ~clear) | add)
    try:
        yield
    finally:
        for handle, value in modes:
            kernel32.SetConsoleMode(handle, value)
