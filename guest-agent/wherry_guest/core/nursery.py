"""PID 1's children: starting them, hearing from them, reaping them. Used by PID 1 only.

Rules: nothing here waits for a child. The plan is made before the clone: in this process the code
is warm and its pages are its own, which halves what the child would need for it. A child's status
socket says how the start went (a message: it failed; a plain end: it exec'd), the wait status says
how it ended. A record lives until the agent forgets it, so that a new agent hears everything again.
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

from wherry_guest.core import cgroups
from wherry_guest.core.devices import DevicePrograms
from wherry_guest.core.fields import SpecError
from wherry_guest.core.launch import Descriptors, launch
from wherry_guest.core.plan import Layout, Options, Plan, container_plan, device_filter, exec_plan
from wherry_guest.core.seccomp import Filter, Filters
from wherry_guest.core.spec import Spec, parse_process, parse_spec
from wherry_guest.core.steps import SETUP_FAILED
from wherry_guest.zygote import Packet, Rootfs

if TYPE_CHECKING:
    from wherry_guest.core.syscalls import Kernel

Emit = Callable[[dict[str, Any], Sequence[int]], None]
"""Sends one event to the agent: header, descriptors (which stay ours)."""

READ_SPEC: Final = "read the spec"

_MAX_REPORT: Final = 65536

_socket: Final[Any] = socket


@dataclass(slots=True)
class Child:
    """One spawned process.

    Args:
        pid: 0 while only its midwife is known.
        new_cgroup: the directory that a failed start must remove.
        user_namespace, personality, seccomp: of a container's first process; execs get them too.
    """

    key: str
    pid: int
    status: socket.socket | None
    new_cgroup: str | None
    started_ns: int = 0
    terminal: int | None = None
    failure: dict[str, Any] | None = None
    ended: tuple[int, int] | None = None  # (wait status, time_ns)
    midwife: int = 0
    user_namespace: bool = False
    personality: str | None = None
    seccomp: Filter | None = None


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
    _filters: Filters = field(default_factory=Filters)
    _programs: DevicePrograms = field(default_factory=DevicePrograms)
    _by_pid: dict[int, Child] = field(default_factory=dict)
    _by_status: dict[int, Child] = field(default_factory=dict)

    def spawn(self, packet: Packet) -> None:
        """Start a container; the answer is an event."""
        header = packet.header
        key, path, tty = header["key"], header["cgroup"], header["tty"]
        if self._refuse_taken(key):
            return
        directory = f"{self.layout.cgroups}/{path}"
        try:
            spec, rootfs = self._read(packet.body)
            options = Options(directory, tty, filtered=True)
            plan = container_plan(spec, rootfs, options, self.layout)
        except SpecError as error:
            self._refuse(key, READ_SPEC, error)
            return
        try:
            cgroups.make(self.kernel, self.layout.cgroups, path)
        except (OSError, ValueError) as error:
            self._refuse(key, f"make the cgroup {path}", error)
            return
        step = "clone the process"
        try:
            if (filtering := device_filter(spec, directory, self.layout)) is not None:
                step = filtering.describe()
                self._programs.attach(self.kernel, filtering)
                step = "clone the process"
            child = self._launch(key, directory, packet.fds, plan, None)
        except OSError as error:
            cgroups.remove(self.kernel, directory)
            self._refuse(key, step, error)
            return
        child.new_cgroup = directory
        child.user_namespace = spec.namespaces.own("user")
        child.personality = spec.personality
        child.seccomp = spec.seccomp

    def _read(self, body: bytes) -> tuple[Spec, Rootfs]:
        request = json.loads(body)
        rootfs = request["rootfs"]
        rootfs["lowerdirs"] = tuple(rootfs["lowerdirs"])
        return parse_spec(request["spec"], filters=self._filters), Rootfs(**rootfs)

    def exec(self, packet: Packet) -> None:
        """Start one more process in a container; the answer is an event."""
        header = packet.header
        key, tty, target = header["key"], header["tty"], header["target"]
        if self._refuse_taken(key):
            return
        container = self._by_pid.get(target)
        if container is None or not container.started_ns:
            error = OSError(errno.ESRCH, "the container is not running")
            self._refuse(key, "find the container's process", error)
            return
        directory = f"{self.layout.cgroups}/{header['cgroup']}"
        try:
            pidfd = self.kernel.pidfd_open(target)
        except OSError as error:
            self._refuse(key, "find the container's process", error)
            return
        try:
            process = parse_process(json.loads(packet.body)["process"])
            options = Options(directory, tty)
            own = (container.user_namespace, container.personality, container.seccomp)
            plan = exec_plan(process, options, pidfd, self.layout, *own)
            self._launch(key, directory, packet.fds, plan, pidfd)
        except SpecError as error:
            self._refuse(key, READ_SPEC, error)
        except OSError as error:
            self._refuse(key, "clone the process into the container", error)
        finally:
            self.kernel.close(pidfd)

    def hear(self, fd: int) -> None:
        """Read the status socket `fd`: a terminal, a failure, or the end."""
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
                    child.started_ns = time.time_ns()
                    self._emit_started(child)
            elif fds:
                child.terminal = fds[0]
            elif "pid" in (message := json.loads(data)):
                child.pid = message["pid"]
                self._by_pid[child.pid] = child
            else:
                child.failure = message

    def reap(self, pid: int, status: int) -> bool:
        """Take note of a wait status; False when the process is none of ours (an orphan)."""
        child = self._by_pid.pop(pid, None) or self._born_unheard(pid)
        if child is None:
            return False
        if pid == child.midwife:
            return self._midwife_gone(child)
        if child.status is not None:
            self.hear(child.status.fileno())  # it is dead: everything is there, the end too
        if child.failure is not None:
            self._forget_failed(child)
        else:
            child.ended = (status, time.time_ns())
            self._emit_exited(child)
        return True

    def _born_unheard(self, pid: int) -> Child | None:
        """A process that ended before its midwife's word about it was read."""
        for child in list(self.children.values()):
            if child.midwife and child.status is not None:
                self.hear(child.status.fileno())
        return self._by_pid.pop(pid, None)

    def _midwife_gone(self, child: Child) -> bool:
        if child.status is not None:
            self.hear(child.status.fileno())
        if not child.pid:  # she has made nobody, and said why
            self._close_status(child)
            child.failure = child.failure or _killed()
            self._forget_failed(child)
        return True

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
        self, key: str, cgroup: str, stdio: Sequence[int], plan: Plan, pidfd: int | None
    ) -> Child:
        cgroup_fd = self.kernel.open(cgroup, os.O_RDONLY)
        try:
            keep = [] if pidfd is None else [pidfd]
            fds = Descriptors(stdio, cgroup_fd, keep)
            launched = launch(self.kernel, plan, fds, self.own_pid_namespace, pidfd)
        finally:
            self.kernel.close(cgroup_fd)
        status = launched.status
        status.setblocking(False)
        child = Child(key, launched.pid, status, None)
        if launched.midwife:
            child.pid, child.midwife = 0, launched.pid
        self.children[key] = self._by_pid[launched.pid] = child
        self._by_status[status.fileno()] = child
        self.watch(status.fileno())
        return child

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


def _killed() -> dict[str, Any]:
    words = "the process that was to make it has ended"
    return {"step": "make the process", "errno": 0, "exit_code": SETUP_FAILED, "message": words}
