"""PID 1's children: starting them, hearing from them, reaping them. Used by PID 1 only.

Rules: nothing here waits for a child. The plan is made before there is a child. A plan that can be
said as a flat program is the cradle's; when it cannot, or its program fails, a fork of this process
executes the plan's steps, which know what to say of a failure. A child's status socket says how the
start went (a message: it failed; a plain end: it exec'd), the wait status says how it ended. A
record lives until the agent forgets it, so that a new agent hears everything again.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from wherry_guest.core import cgroups, flat_user
from wherry_guest.core.births import Births
from wherry_guest.core.burials import Burials
from wherry_guest.core.devices import DevicePrograms, FilterDevices
from wherry_guest.core.fields import SpecError
from wherry_guest.core.flat_making import MOUNTS
from wherry_guest.core.launch import Descriptors, launch
from wherry_guest.core.plan import Layout
from wherry_guest.core.spare import Spare
from wherry_guest.core.spec import User
from wherry_guest.core.starts import Start, Starts, Traits
from wherry_guest.core.steps import SETUP_FAILED, SetupError
from wherry_guest.zygote import Packet

if TYPE_CHECKING:
    from wherry_guest.core.syscalls import Kernel

Emit = Callable[[dict[str, Any], Sequence[int]], None]
"""Sends one event to the agent: header, descriptors (which stay ours)."""

READ_SPEC: Final = "read the spec"

_MAX_REPORT: Final = 40 * 1024  # two files of a question are the most

_socket: Final[Any] = socket


@dataclass(slots=True)
class Request:
    """What the agent has asked for, kept until the process runs.

    Args:
        fds: its stdio; ours.
        user: who the process is to be.
        again: the cradle could not, and a fork tries; the cgroup is there.
    """

    header: dict[str, Any]
    body: bytes
    fds: list[int]
    user: User | None = None
    again: bool = False


@dataclass(slots=True)
class Child:
    """One spawned process.

    Args:
        pid: 0 while only its midwife, or the cradle, knows it.
        new_cgroup: the directory that a failed start must remove.
        mounts: its mount namespace, held so that its end is not the process's.
        traits: of a container's first process.
        request: while a flat program makes it: what a fork would need.
    """

    key: str
    pid: int
    status: socket.socket | None
    new_cgroup: str | None
    started_ns: int = 0
    terminal: int | None = None
    mounts: int | None = None
    failure: dict[str, Any] | None = None
    ended: tuple[int, int] | None = None  # (wait status, time_ns)
    midwife: int = 0
    traits: Traits | None = None
    request: Request | None = None


@dataclass(slots=True)
class Nursery:
    """All children by key and by pid.

    Args:
        watch, unwatch: called with the status socket's descriptor; `hear` when it is readable.
    """

    kernel: Kernel
    layout: Layout
    emit: Emit
    watch: Callable[[int], None]
    unwatch: Callable[[int], None]
    own_pid_namespace: int
    children: dict[str, Child] = field(default_factory=dict)
    _programs: DevicePrograms = field(default_factory=DevicePrograms)
    _by_pid: dict[int, Child] = field(default_factory=dict)
    _by_status: dict[int, Child] = field(default_factory=dict)
    _has_started_some: bool = False
    _births: Births = field(init=False)
    _starts: Starts = field(init=False)
    _burials: Burials = field(init=False)
    _spare: Spare = field(init=False)

    def __post_init__(self) -> None:
        self._births = Births(self.kernel, self.watch, self.unwatch, self._known_reaped)
        self._starts = Starts(self.layout, self._births.architecture)
        self._spare = Spare(self._births)
        self._burials = Burials(self._births, self._spare.make)

    def prepare(self) -> None:
        """Make the cradle. OSError: there will be none now, and forks do all."""
        self._births.prepare()

    @property
    def wants_rest(self) -> bool:
        """Whether `rest` should be called once nothing has happened for a while."""
        return self._has_started_some and self._spare.wanted

    def rest(self) -> None:
        """Do what the next start needs not wait for then."""
        self._spare.make()

    def learn(self, packet: Packet) -> None:
        """Remember a shape."""
        self._starts.learn(packet.header["number"], packet.body)

    def spawn(self, packet: Packet) -> None:
        """Start a container; the answer is an event."""
        if self._refuse_taken(packet.header["key"]):
            return
        request = Request(packet.header, packet.body, packet.fds)
        if packet.header["key"] in self._burials:
            self._later(_keeping(request))
        else:
            self._spawn(request)

    def _spawn(self, request: Request) -> None:
        header = request.header
        key, path = header["key"], header["cgroup"]
        directory = f"{self.layout.cgroups}/{path}"

        def read(flat: bool) -> Start:
            spare = self._spare.ready
            return self._starts.container(header, request.body, directory, flat, spare)

        try:
            start = read(not request.again)
        except SpecError as error:
            self._refuse(key, READ_SPEC, error)
            return
        step = f"make the cgroup {path}"
        try:
            if not request.again:
                cgroups.make(self.kernel, self.layout.cgroups, path)
        except (OSError, ValueError) as error:
            self._refuse(key, step, error)
            return
        step = "clone the process"
        rules = start.traits.devices
        try:
            if rules and not request.again:
                filtering = FilterDevices(directory, rules)
                step = filtering.describe()
                self._programs.attach(self.kernel, filtering)
                step = "clone the process"
            child = self._launch(request, directory, start, read, None)
        except OSError as error:
            cgroups.remove(self.kernel, directory)
            self._refuse(key, step, error)
            return
        child.new_cgroup, child.traits = directory, start.traits

    def exec(self, packet: Packet) -> None:
        """Start one more process in a container; the answer is an event."""
        if not self._refuse_taken(packet.header["key"]):
            self._exec(Request(packet.header, packet.body, packet.fds))

    def _exec(self, request: Request) -> None:
        header = request.header
        key, target = header["key"], header["target"]
        container = self._by_pid.get(target)
        if container is None or not container.started_ns or container.traits is None:
            error = OSError(errno.ESRCH, "the container is not running")
            self._refuse(key, "find the container's process", error)
            return
        directory, traits = f"{self.layout.cgroups}/{header['cgroup']}", container.traits
        try:
            pidfd = self.kernel.pidfd_open(target)
        except OSError as error:
            self._refuse(key, "find the container's process", error)
            return

        def read(flat: bool) -> Start:
            return self._starts.exec(header, request.body, traits, pidfd, flat)

        try:
            self._launch(request, directory, read(not request.again), read, pidfd)
        except SpecError as error:
            self._refuse(key, READ_SPEC, error)
        except OSError as error:
            self._refuse(key, "clone the process into the container", error)
        finally:
            self.kernel.close(pidfd)

    def hear(self, fd: int) -> None:
        """Read the status socket `fd`: a terminal, a question, a failure, or the end."""
        if self._births.hear(fd):
            return
        child = self._by_status.get(fd)
        while child is not None and child.status is not None:
            try:
                data, fds, _, _ = _socket.recv_fds(
                    child.status, _MAX_REPORT, 1, _socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            if not data:
                self._close_status(child)
                if child.failure is None:
                    self._has_started(child)
            elif fds and data == MOUNTS:
                child.mounts = fds[0]
            elif fds:
                child.terminal = fds[0]
            elif child.request is not None:
                self._hear_flat(child, child.request, data)
            elif "pid" in (message := json.loads(data)):
                child.pid = message["pid"]
                self._by_pid[child.pid] = child
            else:
                child.failure = message

    def reap(self, pid: int, status: int) -> bool:
        """Take note of a wait status; False when the process is none of ours (an orphan)."""
        now = time.time_ns()
        known = self._births.reaped(pid) or self._known_reaped(pid, status, now)
        if not known:
            self._hear_unheard()
            known = self._known_reaped(pid, status, now)
        return known or self._births.hold(pid, status, now)

    def _known_reaped(self, pid: int, status: int, now: int) -> bool:
        """The same, for those whose pids are known."""
        if self._burials.reaped(pid) or self._spare.reaped(pid):
            return True
        child = self._by_pid.pop(pid, None)
        if child is not None:
            self._reaped(child, pid, status, now)
        return child is not None

    def _reaped(self, child: Child, pid: int, status: int, now: int) -> None:
        if pid == child.midwife:
            self._midwife_gone(child)
            return
        if child.status is not None:
            self.hear(child.status.fileno())  # it is dead: everything is there, the end too
        if child.failure is not None:
            if child.request is not None:
                self._again(child, child.request)
            else:
                self._forget_failed(child)
        else:
            child.ended = (status, now)
            self._emit_exited(child)
            self._bury(child)

    def _hear_unheard(self) -> None:
        """What the cradle and midwives have said about who may have ended already."""
        self._births.listen()
        for child in list(self.children.values()):
            if child.midwife and child.status is not None:
                self.hear(child.status.fileno())

    def _midwife_gone(self, child: Child) -> None:
        if child.status is not None:
            self.hear(child.status.fileno())
        if not child.pid:  # she has made nobody, and said why
            self._close_status(child)
            child.failure = child.failure or _killed()
            self._forget_failed(child)

    def forget(self, key: str) -> None:
        """Drop the record of an ended process."""
        child = self.children.get(key)
        if child is not None and child.ended is not None:
            self._drop(child)

    def repeat(self) -> None:
        """Tell a new agent everything."""
        for child in self.children.values():
            if child.started_ns:
                self._emit_started(child)
            if child.ended is not None:
                self._emit_exited(child)

    def _launch(
        self,
        request: Request,
        cgroup: str,
        start: Start,
        read: Callable[[bool], Start],
        pidfd: int | None,
    ) -> Child:
        """Have the process made, by the cradle or else by a fork; OSError."""
        key = request.header["key"]
        keep = [] if pidfd is None else [pidfd]
        cgroup_fd = self.kernel.open(cgroup, os.O_RDONLY)
        try:
            request.user = start.traits.user
            child = self._by_cradle(request, start, [cgroup_fd, *keep])
            if child is None:
                plan = start.plan or read(False).plan
                assert plan is not None  # without a program there is one
                fds = Descriptors(request.fds, cgroup_fd, keep)
                launched = launch(self.kernel, plan, fds, self.own_pid_namespace, pidfd)
                child = Child(key, launched.pid, launched.status, None)
                if launched.midwife:
                    child.pid, child.midwife = 0, launched.pid
                self._by_pid[launched.pid] = child
        finally:
            self.kernel.close(cgroup_fd)
        status = child.status
        assert status is not None  # as it was made
        status.setblocking(False)
        self.children[key] = child
        self._by_status[status.fileno()] = child
        self.watch(status.fileno())
        return child

    # By the cradle.

    def _by_cradle(self, request: Request, start: Start, more: list[int]) -> Child | None:
        """Have the cradle make the process, if that is possible."""
        if start.program is None:
            return None
        ours, theirs = socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        child = Child(request.header["key"], 0, ours, None, request=request)

        def born(pid: int) -> None:
            child.pid = pid
            self._by_pid[pid] = child

        network = [self._spare.take()] if start.network else []
        with theirs:
            fds = [*request.fds, theirs.fileno(), *more, *network]
            asked = self._births.ask(
                start.program, fds, born, lambda certain: self._unborn(child, certain)
            )
        _close_all(network)
        if not asked:
            ours.close()
            return None
        _keeping(request)
        return child

    def _unborn(self, child: Child, certain: bool) -> None:
        """The cradle has not made it; or (not certain) has not said so: none may run twice."""
        directory = child.new_cgroup
        if certain or (directory is not None and cgroups.is_empty(self.kernel, directory)):
            self._again(child, child.request)
            return
        if directory is not None:
            cgroups.kill(self.kernel, directory)
        self._close_status(child)
        if child.request is not None:
            _close_all(child.request.fds)
        child.failure = _killed()
        self._forget_failed(child)

    def _hear_flat(self, child: Child, request: Request, data: bytes) -> None:
        if not data.startswith(flat_user.QUESTION):
            child.failure = {}
            return
        try:
            assert request.user is not None and child.status is not None
            child.status.send(flat_user.answer(request.user, data))
        except (OSError, SetupError):
            self._close_status(child)  # which is an answer: it fails, and a fork will say why
            child.failure = {}

    def _again(self, child: Child, request: Request | None) -> None:
        """The cradle's try came to nothing: let a fork say why, or do better."""
        self._close_status(child)
        self._drop(child)
        assert request is not None
        request.again = True
        if child.key in self._burials:
            self._later(request)
        else:
            self._now(request)

    def _later(self, request: Request) -> None:
        """When the mounts of the container's last run have ended."""
        self._burials.when_over(request.header["key"], lambda: self._now(request))

    def _now(self, request: Request) -> None:
        try:
            (self._exec if "target" in request.header else self._spawn)(request)
        finally:
            _close_all(request.fds)

    def _bury(self, child: Child) -> None:
        """Let its mounts end, if we hold them."""
        if child.mounts is not None:
            mounts, child.mounts = child.mounts, None
            self._burials.begin(child.key, mounts)

    def _has_started(self, child: Child) -> None:
        if not child.pid:
            self._births.listen()  # it was said before the status socket's other end was closed
        if not child.pid:
            return  # the cradle has died, with the other end: that is heard next
        child.started_ns = time.time_ns()
        self._has_started_some = True
        if child.request is not None:
            _close_all(child.request.fds)
            child.request = None
        self._emit_started(child)

    def _close_status(self, child: Child) -> None:
        if child.status is not None:
            fd = child.status.fileno()
            self.unwatch(fd)
            del self._by_status[fd]
            child.status.close()
            child.status = None

    def _forget_failed(self, child: Child) -> None:
        if child.new_cgroup is not None:
            cgroups.remove(self.kernel, child.new_cgroup)
        self._drop(child)
        self.emit({"event": "failed", "key": child.key, **(child.failure or {})}, ())

    def _drop(self, child: Child) -> None:
        del self.children[child.key]
        if child.terminal is not None:
            self.kernel.close(child.terminal)
        self._bury(child)

    def _emit_started(self, child: Child) -> None:
        header = {"event": "started", "key": child.key, "pid": child.pid}
        fds = () if child.terminal is None else (child.terminal,)
        self.emit({**header, "started_ns": child.started_ns}, fds)

    def _emit_exited(self, child: Child) -> None:
        if child.ended is not None:
            status, time_ns = child.ended
            header = {"event": "exited", "key": child.key, "pid": child.pid}
            self.emit({**header, "status": status, "time_ns": time_ns}, ())

    def _refuse_taken(self, key: str) -> bool:
        if key not in self.children:
            return False
        self._refuse(key, "start the process", OSError(errno.EEXIST, f"{key} is in use"))
        return True

    def _refuse(self, key: str, step: str, error: Exception) -> None:
        number, message = 0, str(error)
        if isinstance(error, OSError):
            number, message = error.errno or 0, f"{step}: {error.strerror}"
        report = {"step": step, "errno": number, "exit_code": SETUP_FAILED, "message": message}
        self.emit({"event": "failed", "key": key, **report}, ())


def _keeping(request: Request) -> Request:
    """Whoever gave the descriptors would close them: from now on they are the request's."""
    request.fds, given = list(request.fds), request.fds
    given.clear()
    return request


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def _killed() -> dict[str, Any]:
    words = "the process that was to make it has ended"
    return {"step": "make the process", "errno": 0, "exit_code": SETUP_FAILED, "message": words}
