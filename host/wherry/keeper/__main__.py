"""`python -m wherry.keeper PLAN`: see `wherry.keeper`.

PLAN is a file. Standard output gets the report, one line, and is closed; standard error is QEMU's
log. The exit status is QEMU's, or 128 and the number of the signal that ended it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from wherry.keeper.keeper import keep
from wherry.keeper.plan import load_plan


def main() -> None:
    plan = load_plan(Path(sys.argv[1]).read_bytes())
    status = asyncio.run(keep(plan, _report))
    # At once, so that the channels' clients see the end no sooner than our status can be had.
    os._exit(status if status >= 0 else 128 - status)


def _report(line: bytes) -> None:
    os.write(1, line)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


if __name__ == "__main__":
    main()
