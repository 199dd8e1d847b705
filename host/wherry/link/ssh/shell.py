"""`python -m wherry.link.ssh.shell`: what `ssh` does, for hosts that have none.

A shell or a command in the machine, by a proxy command that speaks to its SSH server. The exit code
is the command's, or 255.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.osutil.terminal import (
    input_reader,
    on_resize,
    output_as_written,
    raw_mode,
    terminal_size,
)

if TYPE_CHECKING:
    import paramiko

FAILED = 255
_READ_BYTES = 65536
_PATIENCE = 60.0


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    import paramiko

    try:
        transport = paramiko.Transport(_through(options.proxy))
        try:
            transport.start_client(timeout=_PATIENCE)
            _check_host(transport, options.alias, options.known_hosts)
            key = paramiko.Ed25519Key.from_private_key_file(os.fspath(options.identity))
            transport.auth_publickey(options.user, key)
            channel = transport.open_session(timeout=_PATIENCE)
            return _run(channel, " ".join(options.command), options.tty)  # as ssh(1) does
        finally:
            transport.close()
    except (paramiko.SSHException, OSError, EOFError) as error:
        print(f"wherry: SSH to the machine: {error or 'the connection ended'}", file=sys.stderr)
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wherry machine ssh")
    parser.add_argument("--proxy", required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--identity", type=Path, required=True)
    parser.add_argument("--known-hosts", type=Path, required=True)
    parser.add_argument("--tty", action="store_true")
    parser.add_argument("command", nargs="*")
    return parser


def _through(proxy: str) -> socket.socket:
    """A socket whose other end is the proxy's standard input and output, by threads: paramiko wants
    a socket, and Windows has no inheritable ones."""
    argv = proxy if sys.platform == "win32" else shlex.split(proxy)
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    ours, theirs = socket.socketpair()

    def outwards() -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError), process.stdin:
            while data := theirs.recv(_READ_BYTES):
                process.stdin.write(data)
                process.stdin.flush()

    def inwards() -> None:
        assert process.stdout is not None
        with contextlib.suppress(OSError), process.stdout:
            while data := os.read(process.stdout.fileno(), _READ_BYTES):
                theirs.sendall(data)
        with contextlib.suppress(OSError):
            theirs.shutdown(socket.SHUT_RDWR)

    for work in (outwards, inwards):
        threading.Thread(target=work, daemon=True).start()
    return ours


def _check_host(transport: paramiko.Transport, alias: str, known_hosts: Path) -> None:
    """The proxy has written the key that the machine told before the first byte came through."""
    import paramiko

    key = transport.get_remote_server_key()
    line = f"{alias} {key.get_name()} {key.get_base64()}"
    if line not in known_hosts.read_text(encoding="utf-8").splitlines():
        raise paramiko.SSHException("the machine's SSH server has not the key that it told")


def _run(channel: paramiko.Channel, command: str, tty: bool) -> int:
    with output_as_written(), contextlib.ExitStack() as stack:
        if tty or (not command and sys.stdin.isatty()):
            _request_terminal(channel, stack)
        if command:
            channel.exec_command(command)
        else:
            channel.invoke_shell()
        threading.Thread(target=_send, args=(channel,), daemon=True).start()
        errors = threading.Thread(target=_copy, args=(channel.recv_stderr, 2), daemon=True)
        errors.start()
        _copy(channel.recv, 1)
        errors.join()
        return channel.recv_exit_status() & FAILED


def _request_terminal(channel: paramiko.Channel, stack: contextlib.ExitStack) -> None:
    rows, columns = terminal_size(1)
    channel.get_pty(os.environ.get("TERM", "vt100"), columns or 80, rows or 24)
    if sys.stdin.isatty():
        stack.enter_context(raw_mode(sys.stdin.fileno()))
        stack.enter_context(
            on_resize(1, lambda rows, columns: channel.resize_pty(columns or 80, rows or 24))
        )


def _send(channel: paramiko.Channel) -> None:
    read = input_reader()
    with contextlib.suppress(OSError, EOFError):
        while data := read(_READ_BYTES):
            channel.sendall(data)
        channel.shutdown_write()


def _copy(receive: object, target: int) -> None:
    assert callable(receive)
    while data := receive(_READ_BYTES):
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]


if __name__ == "__main__":
    sys.exit(main())
