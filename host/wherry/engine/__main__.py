"""`python -m wherry.engine --machine NAME`: the engine process. See `wherry.engine.daemon`."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence

from wherry.engine.activation import activated_listener, turn_away
from wherry.engine.daemon import run, start_logging
from wherry.errors import WherryError
from wherry.osutil import listen_unix
from wherry.paths import Home
from wherry.settings import load_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """The process's exit code: 0 after a clean end, else the error's, which goes to stderr."""
    parser = argparse.ArgumentParser(prog="python -m wherry.engine", description=__doc__)
    parser.add_argument("--machine", required=True, help="the machine to serve")
    parser.add_argument(
        "--inherited", action="store_true", help="standard input is the listening API socket"
    )
    parser.add_argument(
        "--service",
        action="store_true",
        help="run by the session's manager: take its socket, start the machine where containers"
        " restart",
    )
    parser.add_argument("--home", help="the state directory, where WHERRY_HOME cannot say it")
    parser.add_argument(
        "--spawned-ns", type=int, help="when this process was started, ns since the epoch"
    )
    options = parser.parse_args(arguments)
    if options.home is not None:
        os.environ["WHERRY_HOME"] = options.home  # also for the processes that this one starts
    home = Home.default()
    try:
        paths = home.machine(options.machine)
        start_logging(paths.engine_log)
        settings = load_settings(home.settings_file)
        if paths.pipe is not None:
            spawned_ns = options.spawned_ns
            run(home, options.machine, settings, paths.api_socket, spawned_ns, options.service)
            return 0
        activated = activated_listener() if options.service else None
        if activated is not None:
            listener = activated
        else:
            listener = _inherited() if options.inherited else listen_unix(paths.api_socket)
        with listener:
            try:
                run(
                    home,
                    options.machine,
                    settings,
                    listener,
                    options.spawned_ns,
                    options.service,
                    activated=activated is not None,
                )
            except WherryError as error:  # told before a waiting client's connection is cut
                if activated is not None:
                    turn_away(listener, error)
                return _complain(error)
    except WherryError as error:
        return _complain(error)
    return 0


def _complain(error: WherryError) -> int:
    """To the log, whose last line a client shows; the exit code."""
    print(f"{error}" + (f" ({error.hint})" if error.hint else ""), file=sys.stderr, flush=True)
    return error.exit_code


def _inherited() -> socket.socket:
    """The socket that is standard input, moved away so that no child inherits it."""
    listener = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return listener


if __name__ == "__main__":
    sys.exit(main())
