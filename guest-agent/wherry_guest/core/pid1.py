"""PID 1's loop: messages from the agent, dead children, the agent's own life.

Rules: tiny and single-threaded (a crash here is a kernel panic); it waits in one place only, for
descriptors; whatever a message does wrong is one console line, never an exception out of the loop.
What makes an agent process is passed in (`launch`), so that tests run the very same loop.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import wherry_guest
from wherry_guest.core.nursery import Nursery
from wherry_guest.core.plan import Layout
from wherry_guest.core.syscalls import RB_AUTOBOOT, RB_POWER_OFF
from wherry_guest.shapes import SHAPES
from wherry_guest.zygote import MAX_DESCRIPTORS, Packet, ZygoteError, receive_packet, send_packet

if TYPE_CHECKING:
    from wherry_guest.core.syscalls import Kernel

FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 5.0
STABLE_AFTER: Final = 30.0
"""Seconds: an agent that crashes is started again after 0.1, 0.2, … 5; one that ran for 30 s
starts the count anew."""

CRASHES_OF_A_REPLACEMENT: Final = 3
"""So many crashes in a row of a replaced agent, and PID 1 goes back to its own."""

LEISURE: Final = 0.2
"""Seconds without anything to do, after which the next start may be prepared."""

_os: Final[Any] = os
_select: Final[Any] = select
_signal: Final[Any] = signal
_socket: Final[Any] = socket


@dataclass(frozen=True, slots=True)
class Program:
    """Which agent to run: PID 1's own (directory None), or the one in `directory`."""

    directory: str | None = None
    digest: str = ""


Launch = Callable[[socket.socket, Program], int]
"""Starts an agent on its end of the control socket (which it may close afterwards); its pid."""


@dataclass(slots=True)
class Agent:
    """The agent that runs now, or waits to be started again (pid 0)."""

    program: Program = field(default_factory=Program)
    pid: int = 0
    socket: socket.socket | None = None
    started: float = 0.0
    crashes: int = 0
    start_at: float = 0.0
    replaced: bool = False
    queue: deque[tuple[dict[str, Any], list[int]]] = field(default_factory=deque)


class Pid1:
    """The loop. `console` writes one line; `first_agent`: pid and our end of one that runs already.

    Attributes:
        nursery: the children that the agent asked for.
        agent: the agent's process.
    """

    def __init__(
        self,
        kernel: Kernel,
        layout: Layout,
        launch: Launch,
        console: Callable[[str], None],
        first_agent: tuple[int, socket.socket] | None = None,
    ) -> None:
        self._kernel = kernel
        self._launch = launch
        self._console = console
        self._epoll = _select.epoll()
        self._wake = _wake_on_child()
        self._store: dict[str, list[int]] = {}
        self.agent = Agent()
        self._first_agent = first_agent
        self.nursery = Nursery(
            kernel,
            layout,
            self._emit,
            watch=lambda fd: self._epoll.register(fd, _select.EPOLLIN),
            unwatch=self._epoll.unregister,
            own_pid_namespace=kernel.open("/proc/self/ns/pid", os.O_RDONLY),
        )
        self._epoll.register(self._wake, _select.EPOLLIN)
        self._operations: dict[str, Callable[[Packet], None]] = {
            "shape": self.nursery.learn,
            "spawn": self._spawn,
            "exec": self.nursery.exec,
            "keep": self._keep,
            "drop": lambda packet: self._drop(packet.header["name"]),
            "fetch": self._fetch,
            "forget": self._forget,
            "replace": self._replace,
            "poweroff": lambda packet: kernel.reboot(RB_POWER_OFF),
            "reboot": lambda packet: kernel.reboot(RB_AUTOBOOT),
        }

    def run(self) -> None:
        """Start the agent, then serve for ever."""
        if self._first_agent is not None:
            self._connect(*self._first_agent)
        self._prepare()
        self._reap()  # what ended before SIGCHLD was watched
        while True:
            self._start_agent_when_due()
            happened = self._epoll.poll(self._patience())
            if not happened and self.nursery.wants_rest:
                self.nursery.rest()
            for fd, events in happened:
                try:
                    self._handle(fd, events)
                except Exception as error:  # noqa: BLE001 - PID 1's end is a kernel panic
                    self._console(f"wherry: PID 1: {type(error).__name__}: {error}")

    def _prepare(self) -> None:
        try:
            self.nursery.prepare()
        except OSError as error:
            self._console(f"wherry: PID 1: the cradle cannot be made: {error}")

    def _handle(self, fd: int, events: int) -> None:
        control = self.agent.socket
        if fd == self._wake.fileno():
            self._wake.recv(4096)
            self._reap()
        elif control is not None and fd == control.fileno():
            if events & _select.EPOLLOUT:
                self._flush()
            if events & ~_select.EPOLLOUT:
                self._serve(control)
        else:
            self.nursery.hear(fd)

    # The agent's requests.

    def _serve(self, control: socket.socket) -> None:
        while self.agent.socket is control:
            try:
                packet = receive_packet(control)
            except (ZygoteError, ValueError) as error:
                self._disconnect()  # its exit, or its killing, starts the next one
                self._kill_agent(f"agent: {error}")
                return
            if packet is None:
                return
            self._operate(packet)

    def _operate(self, packet: Packet) -> None:
        try:
            self._operations[packet.header["op"]](packet)
        except Exception as error:  # noqa: BLE001 - a bad message must not end PID 1
            self._console(f"wherry: request failed: {type(error).__name__}: {error}")
        finally:
            for fd in packet.fds:
                os.close(fd)

    def _spawn(self, packet: Packet) -> None:
        """What is to be kept comes last among the descriptors, in the order of its names."""
        for name, count in reversed(packet.header.pop("keep", [])):
            self._drop(name)
            self._store[name] = packet.fds[-count:]
            del packet.fds[-count:]
        self.nursery.spawn(packet)

    def _forget(self, packet: Packet) -> None:
        for name in packet.header.get("drop", []):
            self._drop(name)
        self.nursery.forget(packet.header["key"])

    def _keep(self, packet: Packet) -> None:
        name = packet.header["name"]
        self._drop(name)
        self._store[name] = list(packet.fds)
        packet.fds.clear()

    def _drop(self, name: str) -> None:
        for fd in self._store.pop(name, []):
            os.close(fd)

    def _fetch(self, packet: Packet) -> None:
        names: list[tuple[str, int]] = []
        fds: list[int] = []
        for name, kept in self._store.items():
            if len(fds) + len(kept) > MAX_DESCRIPTORS:
                self._emit({"event": "kept", "names": names, "more": True}, fds)
                names, fds = [], []
            names.append((name, len(kept)))
            fds += kept
        self._emit({"event": "kept", "names": names, "more": False}, fds)

    def _replace(self, packet: Packet) -> None:
        self.agent.program = Program(packet.header["directory"], packet.header["digest"])
        self.agent.replaced = True
        self._disconnect()
        self._kill_agent(None)

    # What goes to the agent. The queue dies with an agent: the next one is told everything anew.

    def _emit(self, header: dict[str, Any], fds: Sequence[int]) -> None:
        if self.agent.socket is not None:
            # duplicates: a queued descriptor may be dropped or forgotten before it is sent
            self.agent.queue.append((header, [os.dup(fd) for fd in fds]))
            self._flush()

    def _flush(self) -> None:
        agent = self.agent
        while agent.socket is not None and agent.queue:
            header, fds = agent.queue[0]
            try:
                if not send_packet(agent.socket, header, fds=fds):
                    break
            except ZygoteError:
                return  # its exit is on the way
            agent.queue.popleft()
            _close_all(fds)
        if agent.socket is not None:
            events = _select.EPOLLIN | (_select.EPOLLOUT if agent.queue else 0)
            self._epoll.modify(agent.socket, events)

    # The agent's life.

    def _start_agent_when_due(self) -> None:
        agent = self.agent
        if agent.pid or time.monotonic() < agent.start_at:
            return
        ours, theirs = socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            pid = self._launch(theirs, agent.program)
        except OSError as error:  # no memory, no pid: both may come back
            ours.close()
            agent.start_at = time.monotonic() + LONGEST_DELAY
            self._console(f"wherry: the agent could not be started: {error}")
            return
        finally:
            theirs.close()
        self._connect(pid, ours)

    def _connect(self, pid: int, ours: socket.socket) -> None:
        ours.setblocking(False)
        agent = self.agent
        agent.pid, agent.socket = pid, ours
        agent.started, agent.replaced = time.monotonic(), False
        self._epoll.register(ours, _select.EPOLLIN)
        directory = os.path.dirname(os.path.dirname(wherry_guest.__file__))  # noqa: PTH120 - pathlib is a slow import for PID 1
        version = wherry_guest.__version__
        hello = {"event": "hello", "version": version, "directory": directory, "shapes": SHAPES}
        self._emit(hello, ())
        self.nursery.repeat()

    def _patience(self) -> float:
        """For epoll: seconds until the agent is to be started, or leisure begins; -1: for ever."""
        if not self.agent.pid:
            return max(0.0, self.agent.start_at - time.monotonic())
        return LEISURE if self.nursery.wants_rest else -1

    def _agent_ended(self, status: int) -> None:
        agent, now = self.agent, time.monotonic()
        self._disconnect()
        agent.pid = 0
        if agent.replaced:
            agent.crashes, agent.start_at = 0, now
            return
        agent.crashes = 1 if now - agent.started > STABLE_AFTER else agent.crashes + 1
        delay = min(FIRST_DELAY * 2 ** min(agent.crashes - 1, 10), LONGEST_DELAY)
        agent.start_at = now + delay
        code = os.waitstatus_to_exitcode(status)
        self._console(f"wherry: agent ended with {code}, starts again in {delay:.1f} s")
        if agent.program.directory is not None and agent.crashes >= CRASHES_OF_A_REPLACEMENT:
            self._console("wherry: the replaced agent keeps ending: back to PID 1's own")
            agent.program, agent.crashes = Program(), 0

    def _disconnect(self) -> None:
        agent = self.agent
        if agent.socket is not None:
            self._epoll.unregister(agent.socket)
            agent.socket.close()
            agent.socket = None
        for _, fds in agent.queue:
            _close_all(fds)
        agent.queue.clear()

    def _kill_agent(self, reason: str | None) -> None:
        if reason is not None:
            self._console(f"wherry: {reason}")
        if self.agent.pid:
            os.kill(self.agent.pid, _signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, _os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.agent.pid:
                self._agent_ended(status)
            else:
                self.nursery.reap(pid, status)


def _wake_on_child() -> socket.socket:
    """A socket that is readable after SIGCHLD."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    _signal.signal(_signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(theirs.detach(), warn_on_full_buffer=False)
    return ours


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
