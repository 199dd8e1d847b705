"""The terminal: raw mode, what is typed, its size, and being told when that changes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial

_RESIZE_POLL_SECONDS = 0.25
"""Windows sends no signal when a console's size changes."""

_STDIN, _STDOUT, _STDERR = 0, 1, 2


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
        from wherry.osutil.console import SystemKernel32, raw_console  # here: only Windows pays

        with raw_console(SystemKernel32(), _handle(descriptor), _handle(_STDOUT)):
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
def output_as_written() -> Iterator[None]:
    """While the block runs UTF-8 that is written to the terminal looks as it should.

    That is so by itself but on Windows, whose console has a code page of its own."""
    if sys.platform == "win32":
        from wherry.osutil.console import SystemKernel32, utf8_output

        with utf8_output(SystemKernel32(), _handle(_STDOUT), _handle(_STDERR)):
            yield
        return
    yield


def input_reader() -> Callable[[int], bytes]:
    """What reads standard input: so many bytes at most, b"" at the end; a console's as UTF-8."""
    if sys.platform == "win32":
        from wherry.osutil.console import ConsoleInput, SystemKernel32

        kernel32, handle = SystemKernel32(), _handle(_STDIN)
        if kernel32.mode(handle) is not None:
            return ConsoleInput(kernel32, handle).read
    return partial(os.read, _STDIN)


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
    known = terminal_size(descriptor)

    def watch() -> None:
        nonlocal known
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


def _handle(descriptor: int) -> int:
    """0, which is no console, for a descriptor that is closed."""
    if sys.platform != "win32":
        raise OSError("only on Windows")
    import msvcrt

    try:
        return msvcrt.get_osfhandle(descriptor)
    except OSError:
        return 0
