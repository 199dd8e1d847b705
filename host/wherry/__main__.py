"""The process `wherry`: from its first instruction to its exit code, as quick as Python can be.

A command lives for some 50 ms, half of them in imports. So the garbage collector never runs
(nothing grows), and the process ends without taking the interpreter apart: a tenth of its time.
"""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    """The entry point: never returns; the process's exit code is the command's."""
    gc.disable()
    from wherry.cli.main import run  # after the collector is off

    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or 1  # a full disk, a reader that is gone
    os._exit(code)


if __name__ == "__main__":
    main()
