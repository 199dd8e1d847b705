"""Types into a raw console: prints what arrived, as hex, and whether the console is as before."""

from __future__ import annotations

import msvcrt
import os

from wherry.osutil import terminal
from wherry.osutil.console import SystemKernel32

kernel32 = SystemKernel32()
handles = [msvcrt.get_osfhandle(descriptor) for descriptor in (0, 1)]


def state() -> list[int | None]:
    return [*map(kernel32.mode, handles), kernel32.output_code_page()]


before = state()
print("size", *terminal.terminal_size(1), flush=True)
with terminal.raw_mode(0), terminal.output_as_written():
    read = terminal.input_reader()
    os.write(1, b"ready\r\n")
    typed = b""
    while not typed.endswith(b"q"):
        typed += read(100)
    os.write(1, "wrote \u20ac\r\n".encode())
print("typed", typed.hex())
print("restored", state() == before, before[0] is not None)
