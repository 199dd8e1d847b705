"""The process `wherry`: from its first instruction to its exit code, as quick as Python can be.

A command lives for some 50 ms, half of them in imports. So the garbage collector never runs
(nothing grows), and the process ends without taking the interpreter apart: a tenth of its time.
"""

from __future__ import annotations

import gc
import os
import sys

_INTERRUPTED = 130
"""As shells have it: 128 and SIGINT."""


def main() -> None:
    """The entry point: never returns; the process's exit code is the command's."""
    gc.disable()
    try:
        _open_missing_streams()
        from wherry.cli.main import run  # after the collector is off

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while modules were imported
        code = _INTERRUPTED
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or 1  # a full disk, a reader that is gone
    os._exit(code)


def _open_missing_streams() -> None:
    """Descriptors that we were started without (`>&-`) lead to nothing, before a socket or a file
    gets such a number and with it what we print."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the lowest free descriptor is its number: in order
            # Without pathlib, which not every command imports; it stays open for good.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 ^


if __name__ == "__main__":
    main()
