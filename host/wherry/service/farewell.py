"""`python -m wherry.service.farewell --machine NAME`: run by systemd before it stops the engine.

When the session ends, QEMU is killed with all else that belongs to it: the machine is stopped in
order first. When only the engine is stopped, replaced or has ended, nothing happens: QEMU runs on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from wherry.client import Client
from wherry.errors import WherryError
from wherry.paths import Home
from wherry.service.running import Run, run

_ENDING = "stopping"
"""systemctl(1), is-system-running."""


def main(
    arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ, run: Run = run
) -> int:
    """The process's exit code; errors go to the engine's log."""
    parser = argparse.ArgumentParser(prog="python -m wherry.service.farewell", description=__doc__)
    parser.add_argument("--machine", required=True, help="the machine to stop")
    options = parser.parse_args(arguments)
    if not environ.get("MAINPID"):  # systemd.exec(5): the engine has ended by itself
        return 0
    try:
        if run(["systemctl", "--user", "is-system-running"]).out != _ENDING:
            return 0
        client = Client(Home.default(environ), options.machine)
        if client.running():
            client.request("POST", "/wherry/v1/machine/stop", query={"session": True})
        client.close()
    except WherryError as error:
        print(f"the machine is not stopped with the session: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
