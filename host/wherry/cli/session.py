"""An attached stream, from the user's side: bytes in both directions, raw terminal, signals.

The main thread copies output; a daemon thread copies input, since a blocking read of a terminal
cannot be interrupted on every system.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wherry.cli.output import demultiplex, write_all
from wherry.connection import Connection
from wherry.detachkeys import DEFAULT, DetachScanner, parse_keys

READ_SIZE = 256 * 1024
_FORCED_EXIT = 130
_INTERRUPTS_TO_FORCE = 3
"""As Docker's client: the third Ctrl-C ends the client when the container does not react."""

_PROXIED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")


@dataclass(frozen=True, slots=True)
class Session:
    """How to attach.

    Attributes:
        tty: raw bytes, the local terminal raw; else the stream is multiplexed.
        stdin: copy our standard input.
        resize: told (rows, columns) at the start and on each change; only with a TTY.
        forward: told the name of a signal that we got; None: signals end us as usual.
        detach_keys: Docker's notation; empty: the default.
    """

    tty: bool
    stdin: bool
    resize: Callable[[int, int], None]
    forward: Callable[[str], None] | None = None
    detach_keys: str = ""

    def run(self, connection: Connection, early: bytes) -> bool:
        """Copy until the output ends. True when the user detached. Closes the connection."""
        from wherry.osutil import terminal  # see output.py

        pump = _Pump(self, connection)
        with contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            stack.enter_context(terminal.output_as_written())
            if self.forward is not None and not self.tty:
                stack.enter_context(_forwarding(self.forward))
            if self.tty and sys.stdin.isatty() and self.stdin:
                stack.enter_context(terminal.raw_mode(sys.stdin.fileno()))
            if self.tty and sys.stdout.isatty():
                self.resize(*terminal.terminal_size(sys.stdout.fileno()))
                stack.enter_context(terminal.on_resize(sys.stdout.fileno(), self.resize))
            if self.stdin:
                reading = (terminal.input_reader(),)
                threading.Thread(target=pump.copy_input, args=reading, daemon=True).start()
            pump.copy_output(early)
        return pump.detached


class _Pump:
    def __init__(self, session: Session, connection: Connection) -> None:
        self._connection = connection
        self._tty = session.tty
        keys = parse_keys(session.detach_keys or DEFAULT)
        self._scanner = DetachScanner(keys) if session.tty else None
        self.detached = False

    def copy_input(self, read: Callable[[int], bytes]) -> None:
        """Standard input to the container; runs in a thread of its own."""
        try:
            while data := read(READ_SIZE):
                if self._scanner is not None:
                    data, self.detached = self._scanner.feed(data)
                self._connection.sendall(data)
                if self.detached:
                    self._connection.shutdown(socket.SHUT_RDWR)
                    return
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the stream has ended: the main thread tells how

    def copy_output(self, early: bytes) -> None:
        chunks = self._chunks(early)
        if self._tty:
            for chunk in chunks:
                write_all(1, chunk)
        else:
            demultiplex(chunks)

    def _chunks(self, early: bytes) -> Iterator[bytes]:
        if early:
            yield early
        try:
            while data := self._connection.recv(READ_SIZE):
                yield data
        except ConnectionError:
            return  # the engine ended: what came after is in the log


@contextlib.contextmanager
def _forwarding(forward: Callable[[str], None]) -> Iterator[None]:
    """Send the signals that we get on to the container."""
    interrupts = 0

    def handler(number: int, _frame: object) -> None:
        nonlocal interrupts
        if number in (signal.SIGINT, signal.SIGTERM):
            interrupts += 1
            if interrupts >= _INTERRUPTS_TO_FORCE:
                os.write(2, b"wherry: third interrupt: leaving, the container runs on\n")
                os._exit(_FORCED_EXIT)
        forward(signal.Signals(number).name)

    before = {}
    for name in _PROXIED:
        if (number := getattr(signal, name, None)) is not None:
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
