"""The few Linux facts that the agent's byte movers share: ioctls, pipe sizes, ids that become
paths.

Imports on any OS; what needs Linux fails only when it is called.
"""

from __future__ import annotations

import errno
import os
import re
import select
import sys
from pathlib import Path
from typing import Any, Final

_fcntl: Any = None
if sys.platform != "win32":
    import fcntl

    _fcntl = fcntl

# Names of the standard library that exist on Linux only; mypy checks this file for all platforms.
_os: Final[Any] = os
_select: Final[Any] = select

FIONREAD: Final = 0x541B
"""uapi/asm-generic/ioctls.h; termios has it too, at the price of one more shared object."""

TIOCSWINSZ: Final = 0x5414
"""uapi/asm-generic/ioctls.h."""

PIPE_BYTES: Final = 1 << 20
"""What a container's pipes hold; /proc/sys/fs/pipe-max-size is 1 MiB and root may pass it."""

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")


def is_safe_name(name: object) -> bool:
    """Whether an id may become a file's name: Docker's name rule, so no `/`, no leading dot."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def bytes_available(fd: int) -> int:
    """How many bytes a read of this pipe would give at once."""
    answer: bytes = _fcntl.ioctl(fd, FIONREAD, b"\0\0\0\0")
    return int.from_bytes(answer, sys.byteorder)


def hung_up(fd: int) -> bool:
    """Whether no writer is left; what was written may still be there to read."""
    poller = _select.poll()
    poller.register(fd, 0)
    events = poller.poll(0)
    return bool(events) and bool(events[0][1] & (_select.POLLHUP | _select.POLLERR))


def ioctl(fd: int, request: int, argument: bytes) -> bytes:
    """One ioctl with a small argument that the kernel may change. Raises OSError."""
    result: bytes = _fcntl.ioctl(fd, request, argument)
    return result


def big_pipe() -> tuple[int, int]:
    """A pipe (reader, writer) of PIPE_BYTES, closed on exec; both ends block."""
    reader, writer = _os.pipe2(_os.O_CLOEXEC)
    try:
        _fcntl.fcntl(writer, _fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except PermissionError:
        pass  # a quota (fs.pipe-user-pages-soft): the pipe works, it only holds less
    return reader, writer


def remove_cgroup(directory: Path) -> bool:
    """Remove an empty cgroup; False while processes are in it. One that is gone is fine.

    Here and not from `core.cgroups`, whose import brings the whole spec with it.
    """
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    return True


def kill_cgroup(directory: Path) -> bool:
    """SIGKILL to every process in the cgroup (cgroup.kill); False when there is no such cgroup."""
    try:
        (directory / "cgroup.kill").write_text("1")
    except FileNotFoundError:
        return False
    return True


def make_directory(path: str, mode: int = 0o777) -> bool:
    """mkdir -p; whether it was missing."""
    try:
        os.mkdir(path, mode)  # noqa: PTH102 - as in write_file
    except FileExistsError:
        return False
    except FileNotFoundError:
        os.makedirs(path, mode)  # noqa: PTH103 - as in write_file
    return True


def write_atomically(path: Path, text: str) -> None:
    """Replace a file so that a reader (also one after a crash of this process) sees old or new."""
    name = os.fspath(path)
    write_file(f"{name}.new", text, 0o600)
    os.replace(f"{name}.new", name)  # noqa: PTH105 - of strings: a start's time is in here


def write_file(name: str, text: str, mode: int) -> None:
    """Make or replace a file, whose mode is exactly `mode`; without the layers of `open`."""
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _os.O_CLOEXEC, mode)
    try:
        data = memoryview(text.encode())
        while data:
            data = data[os.write(fd, data) :]
        _os.fchmod(fd, mode)
    finally:
        os.close(fd)
