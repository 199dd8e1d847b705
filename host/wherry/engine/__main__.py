"""`python -m wherry.engine --machine NAME`: the engine process. See `wherry.engine.daemon`."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from wherry.engine.activation import activated_listener, turn_away
from wherry.engine.daemon import Start, run, start_logging
from wherry.errors import WherryError
from wherry.osutil import disk_error, listen_unix, private_directory
from wherry.paths import Home, MachinePaths
from wherry.settings import load_settings

_M_ARENA_MAX = -8  # malloc.h of glibc, mallopt(3)


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
    parser.add_argument(
        "--reading", type=int, metavar="PID", help="write nothing; end with that process"
    )
    parser.add_argument("--home", help="the state directory, where WHERRY_HOME cannot say it")
    parser.add_argument(
        "--spawned-ns", type=int, help="when this process was started, ns since the epoch"
    )
    options = parser.parse_args(arguments)
    if options.home is not None:
        os.environ["WHERRY_HOME"] = options.home  # also for the processes that this one starts
    home = Home.default()
    _share_memory_between_threads()
    try:
        paths = home.machine(options.machine)
        _have_stderr(paths)
        start_logging(paths.engine_log)
        if paths.pipe is not None:
            _run(home, options, paths.api_socket)
        elif options.service and (activated := activated_listener()) is not None:
            with activated:
                return _serve_or_say(home, options, activated, activated=True)
        else:
            with _inherited() if options.inherited else _listen(paths) as listener:
                return _serve_or_say(home, options, listener)
    except WherryError as error:
        return _complain(error)
    return 0


def _listen(paths: MachinePaths) -> socket.socket:
    private_directory(paths.root)
    private_directory(paths.sockets)  # of a long path it is in /tmp, which a reboot empties
    return listen_unix(paths.api_socket)


def _share_memory_between_threads() -> None:
    """glibc gives each thread a heap of its own, and what one has freed no other can use: blocking
    work, which any of some threads does, would have the engine grow by each one's largest."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none, and one heap
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, 1)


def _serve_or_say(
    home: Home, options: argparse.Namespace, listener: socket.socket, *, activated: bool = False
) -> int:
    """Who waits is told what is wrong: nobody reads the log, and a full disk does not take it."""
    try:
        _run(home, options, listener, activated=activated)
    except OSError as error:
        return _refuse(listener, disk_error(error), activated)
    except WherryError as error:
        return _refuse(listener, error, activated)
    return 0


def _refuse(listener: socket.socket, error: WherryError, activated: bool) -> int:
    code = _complain(error)
    turn_away(listener, error, others=activated)
    return code


def _run(
    home: Home,
    options: argparse.Namespace,
    listener: socket.socket | Path,
    *,
    activated: bool = False,
) -> None:
    run(
        home,
        options.machine,
        load_settings(home.settings_file),
        listener,
        Start(
            options.spawned_ns,
            service=options.service,
            activated=activated,
            reading=options.reading,
        ),
    )


def _have_stderr(paths: MachinePaths) -> None:
    """A program without a console has none (pythonw.exe): then it is the log."""
    if getattr(sys, "stderr", None) is None:
        private_directory(paths.root)
        log = paths.engine_log.open("a", encoding="utf-8", buffering=1)
        sys.stdout = sys.stderr = log


def _complain(error: WherryError) -> int:
    """To the log, whose last line a client shows; the exit code."""
    with contextlib.suppress(OSError):  # the disk may be full
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
