"""The container calls, and how containers survive an agent.

Rules: an id is a checked name before it becomes a path; a repeat of a call that went through is no
error; a container's layers are held from its start to its exit.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from wherry_guest.agent.calls import Answer, Params, one_line
from wherry_guest.agent.children import sleep
from wherry_guest.agent.container import Container, Exit, Status, Stdio, read_exit_code
from wherry_guest.agent.kernel import is_safe_name, kill_cgroup, remove_cgroup
from wherry_guest.agent.layers import LayerError, Layers
from wherry_guest.agent.lives import Lives, is_frozen
from wherry_guest.agent.oom import OomWatcher, oom_kills
from wherry_guest.agent.paths import Paths
from wherry_guest.agent.preparing import Preparer
from wherry_guest.agent.probes import Probes
from wherry_guest.agent.readers import connect_reader, log_offset
from wherry_guest.agent.request import Request
from wherry_guest.agent.restart import Restarts
from wherry_guest.agent.tasks import run
from wherry_guest.agent.trash import Trash
from wherry_guest.agent.volumes import Volumes
from wherry_guest.channel import CallError, Channel
from wherry_guest.core.syscalls import Kernel
from wherry_guest.loop import Loop, Timer
from wherry_guest.zygote import Exited, Rootfs, SpawnFailed, Started, Zygote, ZygoteError

_os: Final[Any] = os

KEY: Final = "container:"
"""What PID 1 knows our processes by: this and the id."""

_STDIN: Final = "stdin:"
_OUTPUT: Final = "output:"
"""What PID 1 keeps for a container: where its stdin is written to, where its output is read."""

CGROUP_TRIES: Final = 50
"""Times (10 ms apart) that an ended container's cgroup is given to become empty."""

PATIENCE: Final = 0.05
"""Seconds from a container's end to what nobody waits for: storing it, and letting go of its
cgroup. A container that is removed at once (`run --rm`) spares us most of that."""

LOST_START: Final = 30.0
"""Seconds that a new agent waits for the outcome of a start which the old one had begun."""


class Containers:
    """All containers of this machine.

    Args:
        channel: gives the channel, once there is one.
    """

    def __init__(
        self,
        loop: Loop,
        kernel: Kernel,
        paths: Paths,
        zygote: Zygote,
        layers: Layers,
        channel: Callable[[], Channel],
    ) -> None:
        self._loop = loop
        self._paths = paths
        self._zygote = zygote
        self._layers = layers
        self._channel = channel
        self._trash = Trash(loop, paths.trash)
        self.volumes = Volumes(loop, kernel, paths, self._trash, channel)
        self._preparer = Preparer(kernel, paths, self.volumes, self.find)
        self._oom = OomWatcher(loop)
        self._lives = Lives(loop, zygote, channel)
        self._containers: dict[str, Container] = {}
        self._timers: dict[str, Timer] = {}
        self._leaving: set[str] = set()
        self._closing = False
        self._on_exit: Callable[[str], None] = lambda id: None

    def on_exit(self, callback: Callable[[str], None]) -> None:
        """Call back with the id of each container whose process has ended."""
        self._on_exit = callback

    # The calls.

    async def start(self, params: Params) -> Answer:
        """`container.start`; a repeat for one that runs is answered as the first one was."""
        request = Request.read(params.values)
        container = self._containers.get(request.id)
        if container is None or container.status in (Status.EXITED, Status.WAITING):
            container = container or self._make(request.id)
            container.restarts = Restarts(request.policy)
            self._begin(request, container)
            await self._launch(request, container)
        await container.started
        return {"pid": container.pid, "started_ns": container.started_ns}

    async def attach(self, params: Params) -> Answer:
        """`container.attach`."""
        stream = self._channel().stream(params.number("stream"))
        container = self._named(params)
        if container.status is Status.STARTING:
            try:
                await container.started
            except CallError as error:
                raise CallError("not_found", f"container {container.id} did not start") from error
        offset = log_offset(params, container)
        follow = params.flag("follow", True)
        connect_reader(container, stream, offset, follow)
        if params.flag("stdin") and container.stdin is not None:
            container.stdin.connect(stream)
        else:
            stream.on_data(lambda data: None)  # gives the credit back; nobody reads it
        return {"offset": offset, "running": container.alive}

    async def kill(self, params: Params) -> Answer:
        """`container.kill`."""
        container, number = self._named(params), params.number("signal")
        final = params.flag("final")
        restarts = container.restarts
        restarts.by_user = restarts.by_user or params.flag("by_user")
        restarts.ended = restarts.ended or final
        if container.status is Status.STARTING:
            await container.started
        if container.status is Status.WAITING:
            if final:
                self._end_waiting(container)
            return {"unpaused": False}
        container.kill(number)
        unpaused = container.paused and final
        if unpaused:
            await self._lives.unpause(container)
        elif restarts.policy.active:
            container.save()
        return {"unpaused": unpaused}

    async def pause(self, params: Params) -> Answer:
        """`container.pause`; a repeat is fine."""
        await self._lives.pause(self._running(params))
        return None

    async def unpause(self, params: Params) -> Answer:
        """`container.unpause`; a repeat is fine."""
        await self._lives.unpause(self._running(params))
        return None

    def update(self, params: Params) -> Answer:
        """`container.update`."""
        from wherry_guest.agent.limits import apply  # here: it brings the whole spec with it

        container = self._named(params)
        if not container.alive:
            raise CallError("conflict", f"container {container.id} is not running")
        request = Request.read(params.mapping("start"))
        if request.id != container.id:
            raise CallError("invalid", f"start is {request.id}'s, not {container.id}'s")
        if container.running and (resources := params.optional_mapping("resources")) is not None:
            apply(container.paths.cgroup, resources)
        container.restarts.policy = request.policy
        container.keep_request(request)
        container.save()
        if container.status is Status.WAITING and not request.policy.active:
            self._end_waiting(container)
        return None

    def health(self, params: Params) -> Answer:
        """`container.health`."""
        health = self._named(params).health
        return {"health": None if health is None else health.as_json()}

    def resize(self, params: Params) -> Answer:
        """`container.resize`."""
        self._named(params).resize(params.number("rows"), params.number("cols"))
        return None

    def list_all(self, params: Params) -> Answer:
        """`container.list`."""
        ids = sorted(self._containers)
        return {
            "containers": [self._containers[id].listed() for id in ids],
            "after_event": self._channel().last_unstored_event,
        }

    def remove(self, params: Params) -> Answer:
        """`container.remove`; the deleting itself goes on after the answer."""
        id = params.identifier("id")
        container = self._containers.get(id)
        paths = self._paths.container(id) if container is None else container.paths
        if container is not None and container.alive:
            raise CallError("conflict", f"container {id} is running")
        if container is not None:
            self._let_go(container, removed=True)
        self._trash.take(paths.data)
        _remove_files(paths.run)
        self._containers.pop(id, None)
        return None

    # What others need to know.

    def running(self, id: str) -> Container:
        """The container, for an exec in it. Raises CallError."""
        container = self._containers.get(id)
        if container is None:
            raise CallError("not_found", f"there is no container {id}")
        if not container.running:
            raise CallError("conflict", f"container {id} is not running")
        if container.paused:
            raise CallError("conflict", f"container {id} is paused")
        return container

    def find(self, id: str) -> Container | None:
        return self._containers.get(id)

    def stopped_root(
        self, id: str, lowerdirs: tuple[str, ...], mounts: Sequence[Mapping[str, Any]]
    ) -> tuple[Rootfs, list[dict[str, Any]]]:
        """Its root, made if it never ran, and the mounts of its volumes. CallError, OSError."""
        paths = self._paths.container(id)
        rootfs = self._preparer.rootfs(paths, lowerdirs)
        return rootfs, self._preparer.volume_mounts(mounts, paths.log.exists())

    @property
    def probes(self) -> Probes:
        return self._lives.probes

    async def close(self) -> None:
        """At the machine's shutdown: no policy starts anything again, and nothing is paused."""
        self._closing = True
        for container in self.alive():
            if container.status is Status.WAITING:
                self._end_waiting(container)
            elif container.paused:
                await self._lives.unpause(container)

    def alive(self) -> list[Container]:
        return [container for container in self._containers.values() if container.alive]

    async def until_deleted(self, seconds: float) -> None:
        """Wait, not longer than that, for what was removed to be deleted."""
        deadline = self._loop.time() + seconds
        while self._trash.busy and self._loop.time() < deadline:
            await sleep(self._loop, 0.05)

    def detach(self) -> None:
        """At the machine's shutdown: close what lies on the data disk."""
        self._trash.stop()
        for container in self._containers.values():
            self._let_go(container)
            container.detach()

    # What PID 1 says.

    def started(self, id: str, message: Started) -> None:
        container = self._containers[id]
        if container.status in (Status.EXITED, Status.WAITING):
            return  # as below
        stdio = container.stdio
        if stdio is None:
            raise LookupError(f"PID 1 started {id}, which has no descriptors")
        container.paused = container.paused and is_frozen(container.paths.cgroup)
        container.has_started(message, stdio, lambda: self._zygote.drop(_STDIN + id))
        self._watch_memory(container)
        self._lives.watch(container)

    def spawn_failed(self, id: str, message: SpawnFailed) -> None:
        container = self._containers[id]
        data = {"step": message.step, "errno": message.errno, "exit_code": message.exit_code}
        self._abandon(container, CallError("start_failed", message.message, data))

    def ended(self, id: str, message: Exited) -> None:
        container = self._containers[id]
        if container.status in (Status.EXITED, Status.WAITING):
            # a former agent has stored its end, and was killed before PID 1 could forget it
            self._leaving.add(id)
            self._let_go(container)
            return
        self._lives.unwatch(container)
        container.process_gone(message)
        self._on_exit(id)

    # Surviving.

    def load(self) -> None:
        """Know the containers of earlier boots, once the data disk is mounted."""
        if self._paths.containers.is_dir():
            for directory in self._paths.containers.iterdir():
                if is_safe_name(directory.name) and directory.name not in self._containers:
                    container = self._make(directory.name)
                    container.load()
                    self._forget_unborn(container)
        self._trash.empty()

    def restore(self, kept: Mapping[str, list[int]]) -> list[str]:
        """Take over from a former agent; PID 1's Started and Exited for these are heard after this.

        Returns:
            The kept names that belong to no container, whose descriptors are the caller's.
        """
        unused = set(kept)
        for container in self._containers.values():
            if not container.alive:
                continue
            if container.status is Status.WAITING:
                self._layers.hold_again(KEY + container.id, container.options.lowerdirs)
                self._wait(container)
                continue
            names = (_STDIN + container.id, _OUTPUT + container.id)
            stdin, outputs = (kept.get(name, []) for name in names)
            unused.difference_update(names)
            if len(outputs) == 2:
                container.stdio = Stdio(None, stdin[0] if stdin else None, tuple(outputs))
            if container.status is not Status.STARTING:
                container.status = Status.STARTING  # until PID 1 says that it has started
            self._layers.hold_again(KEY + container.id, container.options.lowerdirs)
            self._expect_start(container)
        return sorted(unused)

    def tell_exits(self) -> None:
        """Emit every exit of this boot again: a new agent does not know which the engine has."""
        for container in self._containers.values():
            if container.exit is not None and container.paths.state.exists():
                self._channel().emit("container.exit", container.exit.as_json())

    # Starting.

    def _make(self, id: str) -> Container:
        container = Container(self._loop, id, self._paths.container(id), self._finish)
        self._containers[id] = container
        return container

    def _begin(self, request: Request, container: Container) -> None:
        """From here on the container is `starting`, for every other call too."""
        self._let_go(container)
        try:
            lowerdirs = self._layers.hold(KEY + request.id, request.layers)
        except LayerError as error:
            self._forget_unborn(container)
            raise CallError("conflict", str(error)) from error
        if (timer := self._timers.pop(container.id, None)) is not None:
            timer.cancel()
        container.begin(request, lowerdirs)

    async def _launch(self, request: Request, container: Container) -> None:
        """Make what the process needs and ask PID 1 for it."""
        try:
            await self._cgroup_removed(container)
            rootfs = self._preparer.rootfs(container.paths, container.options.lowerdirs)
            rootfs = self._preparer.with_ground(rootfs, request)
            spec = self._preparer.spec(request, container)
            container.stdio = stdio = Stdio.make(container.options)
            keep = {_OUTPUT + request.id: stdio.outputs}
            if stdio.stdin is not None:
                keep[_STDIN + request.id] = (stdio.stdin,)
            key = KEY + request.id
            self._zygote.spawn(key, spec, rootfs, stdio.child, request.tty, request.id, keep)
            stdio.close_child()
        except OSError as error:
            message = f"prepare the container: {one_line(error)}"
            data = {"step": message, "errno": error.errno or 0, "exit_code": 125}
            self._abandon(container, CallError("start_failed", message, data))
        except CallError as error:
            self._abandon(container, error)

    def _abandon(self, container: Container, error: CallError) -> None:
        """A start that came to nothing."""
        if container.stdio is not None:
            container.stdio.close_ours()
        self._zygote.drop(_STDIN + container.id)
        self._zygote.drop(_OUTPUT + container.id)
        self._layers.release(KEY + container.id)
        self._preparer.ended(container.paths)
        container.start_failed(error)
        if container.exit is not None and container.exit.restarting:
            code = (error.data or {}).get("exit_code", 125)
            self._end_waiting(container, exit_code=code, error=error.message)
        self._forget_unborn(container)

    def _forget_unborn(self, container: Container) -> None:
        """A container that never ran is not listed; its directories stay until its removal."""
        if not container.alive and not container.has_run:
            self._containers.pop(container.id, None)

    def _expect_start(self, container: Container) -> None:
        def look() -> None:
            if container.status is Status.STARTING:
                what = "the agent was replaced while the container started"
                data = {"step": what, "errno": 0, "exit_code": 125}
                self._abandon(container, CallError("start_failed", what, data))

        self._loop.call_later(LOST_START, look)

    # Ending.

    def _finish(self, container: Container) -> None:
        ending = container.ending
        if ending is None:
            raise LookupError(f"{container.id} is drained but has not ended")
        code, number = read_exit_code(ending.status)
        ran = max(0, ending.time_ns - container.started_ns) / 1e9
        delay = None if self._closing else container.restarts.after_exit(code, ran)
        kills = 0
        if container.oom_watch is not None:
            kills = self._oom.unwatch(container.oom_watch)  # tells what it has not told yet
            container.oom_watch = None
        exit = Exit(
            id=container.id,
            exit_code=code,
            signal=number,
            oom=kills > 0,
            started_ns=container.started_ns,
            finished_ns=ending.time_ns,
            log_bytes=container.log.size,
            log_lost=container.log_lost,
            restarting=delay is not None,
            restart_count=container.restarts.count,
            health=None if container.health is None else container.health.as_json(),
        )
        if delay is None:
            self._layers.release(KEY + container.id)
        else:
            container.waits_until = self._loop.time() + delay
        container.finished(exit)
        self._channel().emit("container.exit", exit.as_json())
        self._leaving.add(container.id)
        self._loop.call_soon(lambda: self._preparer.ended(container.paths))  # when it was told
        self._loop.call_later(PATIENCE, lambda: self._let_go(container))
        if delay is not None:
            self._wait(container)

    def _let_go(self, container: Container, removed: bool = False) -> None:
        """What its end leaves to do once it was told, unless that is done already.

        Until then a new agent would hear of the end from PID 1, as this one did.
        """
        if container.id not in self._leaving:
            return
        self._leaving.remove(container.id)
        if not removed:
            container.store_exit()
            container.save()
        try:
            kept = [_OUTPUT + container.id]
            if container.options.open_stdin:
                kept.append(_STDIN + container.id)
            self._zygote.forget(KEY + container.id, kept)
        except ZygoteError:
            return  # PID 1 is gone: whoever listens to it hears of that next
        run(self._cgroup_removed(container))  # when it fails, the next start says so

    # Starting again.

    def _wait(self, container: Container) -> None:
        def due() -> None:
            self._timers.pop(container.id, None)
            if container.status is Status.WAITING:
                done = run(self._start_again(container))
                done.when_settled(done.result)  # a failure is a bug, for the loop's hook

        seconds = max(0.0, container.waits_until - self._loop.time())
        self._timers[container.id] = self._loop.call_later(seconds, due)

    async def _start_again(self, container: Container) -> None:
        """As the policy wants it; a start that fails is the end, as with Docker."""
        request = container.request
        if request is None:
            raise LookupError(f"{container.id} waits for a start that nobody has asked for")
        try:
            self._begin(request, container)
        except CallError as error:
            self._end_waiting(container, exit_code=125, error=error.message)
            return
        await self._launch(request, container)
        try:
            await container.started
        except CallError:
            return  # `_abandon` has told its end
        started = {
            "id": container.id,
            "pid": container.pid,
            "started_ns": container.started_ns,
            "restart_count": container.restarts.count,
        }
        self._channel().emit("container.started", started)

    def _end_waiting(self, container: Container, **changes: Any) -> None:
        """It will not start again: its last exit was its end, which is told once more."""
        if (timer := self._timers.pop(container.id, None)) is not None:
            timer.cancel()
        if container.exit is not None:
            container.set_exit(replace(container.exit, restarting=False, **changes))
            container.store_exit()
            container.save()
            self._channel().emit("container.exit", container.exit.as_json())
        self._layers.release(KEY + container.id)

    async def _cgroup_removed(self, container: Container) -> None:
        """What PID 1 has reaped leaves its cgroup a moment later.

        Raises:
            OSError: EBUSY, there are processes in it which do not die.
        """
        directory = container.paths.cgroup
        for _ in range(CGROUP_TRIES):
            if remove_cgroup(directory):
                return
            kill_cgroup(directory)
            await sleep(self._loop, 0.01)
        raise OSError(errno.EBUSY, "processes of its last run do not end", str(directory))

    def _watch_memory(self, container: Container) -> None:
        def killed() -> None:
            kills = oom_kills(container.paths.memory_events)
            told = {"id": container.id, "started_ns": container.started_ns, "kills": kills}
            self._channel().emit("container.oom", told)

        container.oom_watch = self._oom.watch(container.paths.memory_events, killed)

    def _running(self, params: Params) -> Container:
        container = self._named(params)
        if not container.running:
            raise CallError("conflict", f"container {container.id} is not running")
        return container

    def _named(self, params: Params) -> Container:
        id = params.identifier("id")
        container = self._containers.get(id)
        if container is None:
            raise CallError("not_found", f"there is no container {id}")
        return container


def _remove_files(directory: Path) -> None:
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                # a directory: what was mounted there is not any more
                (os.rmdir if entry.is_dir(follow_symlinks=False) else os.unlink)(entry.path)
        directory.rmdir()
    except FileNotFoundError:
        return
