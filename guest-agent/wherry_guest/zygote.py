"""The messages between PID 1 (the zygote) and the agent; both ends use this module.

Rules:

- One AF_UNIX SOCK_SEQPACKET pair; one datagram is one message: a small JSON header, a newline,
  a body (spec, rootfs). A body above INLINE_BODY travels in a memfd, which is then the message's
  last descriptor.
- A spec goes as its shape and its values (`wherry_guest.shapes`): the shape once, under a number
  that the agent chooses, and by that number from then on. To a PID 1 that does not say that it
  remembers shapes it goes as it is, and is taken so from an agent that knows of none.
- PID 1 never waits for the agent; the agent may wait (at most SEND_TIMEOUT) for PID 1, whose loop
  is tiny.
- *Nothing is lost with an agent.* What `keep` gave, every key that was spawned and every exit stay
  with PID 1 until `drop` or `forget`. To a new agent PID 1 repeats `Started` for every key and
  `Exited` for every ended one.
- *Terminals are made in the container.* With tty=True the child opens the pty in the container's
  own devpts (so `tty` says /dev/pts/0), makes it the controlling terminal and its stdio, binds it
  to /dev/console (a container, not an exec), and sends the master up: `Started.terminal`. The size
  is `process.consoleSize`. PID 1 keeps a duplicate of the master until `forget(key)`, so an agent
  that crashes does not hang up the container.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from wherry_guest.shapes import split_process, split_spec

if TYPE_CHECKING:
    from pathlib import Path

INLINE_BODY: Final = 32 * 1024
"""A longer body travels in a memfd: a datagram must fit net.core.wmem_default (212,992 bytes)."""

SEND_TIMEOUT: Final = 10.0
"""Seconds that the agent waits for PID 1 to take a message before it calls PID 1 hung."""

MAX_DESCRIPTORS: Final = 250
"""Descriptors in one message; the kernel's SCM_MAX_FD is 253 (include/net/scm.h)."""

_MAX_DATAGRAM: Final = 192 * 1024

# Names of the standard library that exist on Linux only; mypy checks this file for all platforms.
_os: Final[Any] = os
_socket: Final[Any] = socket
_select: Final[Any] = select


class ZygoteError(Exception):
    """PID 1 does not answer, or the message is not one."""


@dataclass(frozen=True, slots=True)
class Rootfs:
    """The overlay that becomes the container's root.

    Args:
        lowerdirs: names relative to /run/wherry/l, topmost first, at most 500, none twice.
        upperdir, workdir: absolute paths on one file system; both None: the root is made of the
            lowers alone and cannot be written.
    """

    lowerdirs: tuple[str, ...]
    upperdir: str | None = None
    workdir: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Started:
    """The process was exec'd. `terminal`: the pty's master, owned by the receiver, with tty."""

    key: str
    pid: int
    started_ns: int
    terminal: int | None = None


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """Nothing runs and nothing is left behind. The key is free again.

    Args:
        step: what was being done, in words: "mount proc on /proc".
        errno: the kernel's, 0 when it is not the kernel's refusal.
        exit_code: 125 (set-up), 126 (not executable) or 127 (not found).
        message: one line for a person, with the step in it.
    """

    key: str
    step: str
    errno: int
    exit_code: int
    message: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended. `status` is a wait status (os.waitstatus_to_exitcode)."""

    key: str
    pid: int
    status: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class Kept:
    """The answer to `fetch`: every kept name with fresh descriptors (owned by the receiver)."""

    descriptors: Mapping[str, list[int]]


@dataclass(frozen=True, slots=True)
class Pid1Info:
    """Which code PID 1 runs: its version and `code_digest`."""

    version: str
    digest: str


Message = Started | SpawnFailed | Exited | Kept


class Zygote:
    """The agent's side. Nothing here blocks, but for a full socket (see SEND_TIMEOUT).

    A failed `spawn` or `exec` is reported by `receive` as SpawnFailed, never raised; ZygoteError
    means that PID 1 is gone. Descriptors passed in are duplicated: the caller keeps its own.
    """

    def __init__(self, control_socket_fd: int) -> None:
        self._socket = socket.socket(fileno=control_socket_fd)
        self._socket.setblocking(False)
        self._info: Pid1Info | None = None
        self._directory = ""
        self._partial: dict[str, list[int]] = {}
        self._most_shapes = 0
        self._shapes: list[tuple[int, dict[str, Any]]] = []

    def fileno(self) -> int:
        """Readable when `receive` has something."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the control socket. PID 1 takes this as the agent's end."""
        self._socket.close()

    def receive(self) -> list[Message]:
        """Every message that is there now; an empty list when none is."""
        messages: list[Message] = []
        while (packet := receive_packet(self._socket)) is not None:
            message = self._decode(packet)
            if message is not None:
                messages.append(message)
        return messages

    def spawn(
        self,
        key: str,
        spec: Mapping[str, Any],
        rootfs: Rootfs,
        stdio: tuple[int, int, int] | None,
        tty: bool,
        cgroup: str,
        keep: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Start a container: answered by Started or SpawnFailed.

        Args:
            key: names it in every message; free, that is, never used, forgotten or failed.
            spec: an OCI runtime spec 1.2 as a dict.
            stdio: the three descriptors; None with tty (the terminal comes with Started).
            cgroup: path below the containers' cgroup, "ID"; made here, removed here only when the
                start fails.
            keep: as with `keep`, and in the same message.
        """
        header: dict[str, Any] = {"op": "spawn", "key": key, "tty": tty, "cgroup": cgroup}
        body: dict[str, Any] = {"rootfs": rootfs.as_json()}
        more: list[int] = []
        for name, fds in (keep or {}).items():
            if self._most_shapes:
                header.setdefault("keep", []).append((name, len(fds)))
                more += fds
            else:
                self.keep(name, fds)
        if self._most_shapes:
            shape, values = split_spec(spec)
            header["shape"] = self._shape_number(shape)
            body["values"] = values.as_json()
        else:
            body["spec"] = spec
        self._start(header, body, stdio, more)

    def exec(
        self,
        key: str,
        target_pid: int,
        process: Mapping[str, Any],
        cgroup: str,
        stdio: tuple[int, int, int] | None,
        tty: bool,
    ) -> None:
        """Run one more process in the container whose first process is `target_pid`.

        Args:
            process: an OCI process object. The rest as in `spawn`.
        """
        body: dict[str, Any]
        header = {"op": "exec", "key": key, "tty": tty, "cgroup": cgroup, "target": target_pid}
        if self._most_shapes:
            shape, values = split_process(process)
            header["shape"] = self._shape_number(shape)
            body = {"values": values.as_json()}
        else:
            body = {"process": process}
        self._start(header, body, stdio)

    def keep(self, name: str, fds: Sequence[int]) -> None:
        """Let PID 1 hold duplicates of `fds` (1 to 250) as `name`; an older `name` is closed."""
        if not 1 <= len(fds) <= MAX_DESCRIPTORS:
            raise ValueError(f"keep takes 1 to {MAX_DESCRIPTORS} descriptors, not {len(fds)}")
        self._send({"op": "keep", "name": name}, fds=fds)

    def drop(self, name: str) -> None:
        """Let PID 1 close what it keeps under `name`; an unknown name is fine."""
        self._send({"op": "drop", "name": name})

    def fetch(self) -> None:
        """Ask for all that is kept: answered by one Kept."""
        self._send({"op": "fetch"})

    def forget(self, key: str, drop: Sequence[str] = ()) -> None:
        """Free the key of an exited process, whose exit is stored for good; others are ignored.

        Args:
            drop: as with `drop`, and in the same message.
        """
        header: dict[str, Any] = {"op": "forget", "key": key}
        if drop and self._most_shapes:
            header["drop"] = list(drop)
        else:
            for name in drop:
                self.drop(name)
        self._send(header)

    def replace_agent(self, directory: str, digest: str) -> None:
        """Put another agent in this one's place.

        PID 1 kills this process and execs a fresh interpreter with `directory` (it holds
        `wherry_guest/`) first on sys.path, which calls `wherry_guest.agent.main`. When that one
        keeps crashing, PID 1 goes back to its own agent. WHERRY_AGENT_DIGEST in the new one's
        environment is `digest`.
        """
        self._send({"op": "replace", "directory": directory, "digest": digest})

    def poweroff(self) -> None:
        """End the machine now; syncing and unmounting are the agent's business, before."""
        self._send({"op": "poweroff"})

    def reboot(self) -> None:
        """Restart the machine now; as `poweroff`."""
        self._send({"op": "reboot"})

    def info(self) -> Pid1Info:
        """PID 1's version and code digest.

        PID 1's first message says where its code lies; the digest is made here.
        """
        while self._info is None:
            _wait(self._socket, _select.POLLIN, "PID 1 to say its version")
            packet = receive_packet(self._socket)
            if packet is not None:
                self._decode(packet)
        if not self._info.digest:
            from pathlib import Path  # here: PID 1 does without

            self._info = Pid1Info(self._info.version, code_digest(Path(self._directory)))
        return self._info

    def _start(
        self,
        header: dict[str, Any],
        body: Mapping[str, Any],
        stdio: tuple[int, int, int] | None,
        more: Sequence[int] = (),
    ) -> None:
        if (stdio is None) != header["tty"]:
            raise ValueError("stdio is given when tty is not, and only then")
        self._send(header, json.dumps(body).encode(), (*(stdio or ()), *more))

    def _shape_number(self, shape: dict[str, Any]) -> int:
        """The number that PID 1 knows it by; a new one takes the place of the least used."""
        for position, (number, known) in enumerate(self._shapes):
            if known == shape:
                self._shapes.insert(0, self._shapes.pop(position))
                return number
        number = len(self._shapes)
        if number == self._most_shapes:
            number, _ = self._shapes.pop()
        self._send({"op": "shape", "number": number}, json.dumps(shape).encode())
        self._shapes.insert(0, (number, shape))
        return number

    def _send(self, header: Mapping[str, Any], body: bytes = b"", fds: Sequence[int] = ()) -> None:
        while not send_packet(self._socket, header, body, fds):
            _wait(self._socket, _select.POLLOUT, "PID 1 to take a message")

    def _decode(self, packet: Packet) -> Message | None:
        header, fds = packet.header, packet.fds
        match header.get("event"):
            case "hello":
                self._directory = header["directory"]
                self._info = Pid1Info(header["version"], "")
                self._most_shapes = header.get("shapes", 0)
                return None
            case "kept":
                self._add_kept(header["names"], fds)
                if header["more"]:
                    return None
                kept, self._partial = self._partial, {}
                return Kept(kept)
            case event:
                return _DECODERS[event](header, fds)

    def _add_kept(self, names: Sequence[tuple[str, int]], fds: list[int]) -> None:
        position = 0
        for name, count in names:
            self._partial[name] = fds[position : position + count]
            position += count


def _decode_started(header: Mapping[str, Any], fds: list[int]) -> Message:
    return Started(header["key"], header["pid"], header["started_ns"], fds[0] if fds else None)


def _decode_failed(header: Mapping[str, Any], fds: list[int]) -> Message:
    values = (header[name] for name in ("key", "step", "errno", "exit_code", "message"))
    return SpawnFailed(*values)


def _decode_exited(header: Mapping[str, Any], fds: list[int]) -> Message:
    return Exited(header["key"], header["pid"], header["status"], header["time_ns"])


_DECODERS: Final[Mapping[Any, Callable[[Mapping[str, Any], list[int]], Message]]] = {
    "started": _decode_started,
    "failed": _decode_failed,
    "exited": _decode_exited,
}


def code_digest(directory: Path) -> str:
    """The sha256 (hex) of `directory`/wherry_guest: each *.py file's name, length, bytes, by name.

    Host and guest get the same value for the same code, so it says whether a running agent is the
    installed one.
    """
    import hashlib  # here: PID 1 needs no digests and should not pay for the import

    package = directory / "wherry_guest"
    digest = hashlib.sha256()
    for name in sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py")):
        content = (package / name).read_bytes()
        digest.update(f"{name}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


# The packets, for both ends.


@dataclass(slots=True)
class Packet:
    """One message as it came. The receiver owns `fds`."""

    header: dict[str, Any]
    body: bytes
    fds: list[int]


def send_packet(
    sock: socket.socket, header: Mapping[str, Any], body: bytes = b"", fds: Sequence[int] = ()
) -> bool:
    """Send one message; False when the socket is full now (nothing was sent).

    Raises:
        ZygoteError: the other end is gone.
    """
    extra: list[int] = []
    if len(body) > INLINE_BODY:
        extra = [_memfd(body)]
        header, body = {**header, "memfd": True}, b""
    data = json.dumps(header).encode() + b"\n"
    try:
        _socket.send_fds(sock, [data, body], [*fds, *extra])
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.ECONNRESET):
            raise ZygoteError("the other end closed the control socket") from error
        raise
    finally:
        for fd in extra:
            os.close(fd)
    return True


def receive_packet(sock: socket.socket) -> Packet | None:
    """Receive one message; None when there is none now.

    Raises:
        ZygoteError: the other end is gone, or what came is not a message.
    """
    try:
        data, fds, flags, _ = _socket.recv_fds(
            sock, _MAX_DATAGRAM, MAX_DESCRIPTORS + 1, _socket.MSG_CMSG_CLOEXEC
        )
    except BlockingIOError:
        return None
    except ConnectionResetError as error:
        raise ZygoteError("the other end closed the control socket") from error
    if not data:
        raise ZygoteError("the other end closed the control socket")
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise ZygoteError("a message or its descriptors were cut off")
    head, _, body = data.partition(b"\n")
    header = json.loads(head)
    if header.pop("memfd", False):
        body = _read_all(fds.pop())
    return Packet(header, body, list(fds))


def _wait(sock: socket.socket, event: int, what: str) -> None:
    poller = _select.poll()
    poller.register(sock, event)
    if not poller.poll(SEND_TIMEOUT * 1000):
        raise ZygoteError(f"waited {SEND_TIMEOUT:.0f} s for {what}")


def _memfd(data: bytes) -> int:
    fd: int = _os.memfd_create("wherry-message", _os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return fd


def _read_all(fd: int) -> bytes:
    try:
        return bytes(_os.pread(fd, os.fstat(fd).st_size, 0))
    finally:
        os.close(fd)
