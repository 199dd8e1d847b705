"""Stand-ins for the engine's neighbours: a machine, its link and its agent, all in memory.

The agent obeys docs/agent-calls.md: what it logs it keeps, an attach reads the log from an offset
and follows it, events are sent again until a handler has returned.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from wherry.engine.engine import Engine
from wherry.engine.model import Attachment, Container, Event
from wherry.errors import AgentError, Conflict, ImageNotFound, LinkClosed
from wherry.images.layers import LayerFile
from wherry.images.store import Image
from wherry.link import StreamReset
from wherry.machine import MachineConfig, MachineState
from wherry.paths import Home
from wherry.settings import Settings

_FRAME = struct.Struct(">BBHIQ")
_clock = itertools.count(time.time_ns())


def frame(payload: bytes, stream: int = 1, time_ns: int = 1) -> bytes:
    """A log frame as docs/agent-calls.md has it."""
    return _FRAME.pack(stream, 0, 0, len(payload), time_ns) + payload


class FakeStream:
    """The host's end of a stream, and what the agent does with the other end."""

    def __init__(self, number: int) -> None:
        self.id = number
        self.received = bytearray()
        self.input_ended = False
        self.reset_reason: str | None = None
        self.on_input: Callable[[bytes], None] = lambda _data: None
        self.on_input_end: Callable[[], None] = lambda: None
        self._chunks: list[bytes] = []
        self._ended = False
        self._cut: str | None = None
        self._news = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()

    async def read(self, limit: int = 65536) -> bytes:
        while not self._chunks:
            if self._cut is not None:
                raise StreamReset(self._cut)
            if self._ended:
                return b""
            self._news.clear()
            await self._news.wait()
        data = self._chunks.pop(0)
        if len(data) > limit:
            self._chunks.insert(0, data[limit:])
        return data[:limit]

    async def write(self, data: bytes) -> None:
        await self.writable.wait()
        if self._cut is not None:
            raise StreamReset(self._cut)
        self.received += data
        self.on_input(data)

    async def end(self) -> None:
        if self._cut is not None:
            raise StreamReset(self._cut)
        self.input_ended = True
        self.on_input_end()

    def reset(self, reason: str) -> None:
        if self._cut is None:
            self.reset_reason = reason
            self.cut(reason)

    # The agent's side.

    def send(self, data: bytes) -> None:
        self._chunks.append(data)
        self._news.set()

    def finish(self) -> None:
        self._ended = True
        self._news.set()

    def cut(self, reason: str) -> None:
        self._cut = reason
        self._news.set()
        self.writable.set()


@dataclass(eq=False)
class GuestContainer:
    """A container as the agent has it."""

    id: str
    params: dict[str, Any]
    log: bytearray = field(default_factory=bytearray)
    running: bool = True
    pid: int = 100
    started_ns: int = 0
    exit: dict[str, Any] | None = None
    followers: list[FakeStream] = field(default_factory=list)
    signals: list[int] = field(default_factory=list)
    size: tuple[int, int] | None = None
    final: bool = False
    paused: bool = False
    restarting: bool = False
    restart_count: int = 0
    health: dict[str, Any] | None = None

    @property
    def status(self) -> str:
        if self.restarting:
            return "restarting"
        return "paused" if self.paused else "running" if self.running else "exited"


@dataclass(eq=False)
class GuestExec:
    id: str
    container_id: str
    params: dict[str, Any]
    stream: FakeStream | None
    pid: int = 200
    exit: int | None = None


class FakeAgent:
    """The guest. `on_start` runs before a start is answered; `calls` is what was asked."""

    def __init__(self) -> None:
        self.containers: dict[str, GuestContainer] = {}
        self.execs: dict[str, GuestExec] = {}
        self.streams: dict[int, FakeStream] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.on_start: Callable[[GuestContainer], None] = lambda _container: None
        self.on_exec: Callable[[GuestExec], None] = lambda _exec: None
        self.on_signal: Callable[[GuestContainer, int], None] = self.die_of_signal
        self.start_error: AgentError | None = None
        self.update_error: AgentError | None = None
        self.boot_id = ""
        self.attach_errors: list[AgentError] = []
        self.hold_start: asyncio.Event | None = None
        self.volumes: dict[str, int] = {}
        self.written: dict[str, int] = {}
        self.archive_reply = b""
        self.archive_waits = True
        self.archive_open = False
        self.unacknowledged: list[SimpleNamespace] = []
        self.handler: Callable[[Any], Awaitable[None]] | None = None
        self._ids = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    def asked(self, method: str) -> list[dict[str, Any]]:
        return [params for name, params in self.calls if name == method]

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        self.calls.append((method, params))
        handler = getattr(self, "_" + method.replace(".", "_"))
        await asyncio.sleep(0)
        return await handler(**{key.replace("from", "from_"): params[key] for key in params})

    async def _emulators_register(self, diff_id: str, formats: list[Any]) -> dict[str, Any]:
        names = [it["name"] for it in formats]
        return {"registered": names, "native": []}

    # What happens in the guest.

    def output(self, container_id: str, data: bytes, stream: int = 1, time_ns: int = 1) -> None:
        container = self.containers[container_id]
        piece = frame(data, stream, time_ns)
        container.log += piece
        for follower in container.followers:
            follower.send(piece)

    def exit(
        self, container_id: str, code: int = 0, oom: bool = False, restarting: bool = False
    ) -> None:
        """`restarting`: its policy will start it again."""
        container = self.containers[container_id]
        container.running = False
        container.restarting = restarting
        container.restart_count += restarting
        container.exit = {
            "id": container_id,
            "exit_code": code,
            "signal": None,
            "oom": oom,
            "started_ns": container.started_ns,
            "finished_ns": next(_clock),
            "log_bytes": len(container.log),
            "restarting": restarting,
            "restart_count": container.restart_count,
        }
        for follower in container.followers:
            follower.finish()
        container.followers.clear()
        self.emit("container.exit", container.exit)

    def start_again(self, container_id: str) -> None:
        """Its policy starts it."""
        container = self.containers[container_id]
        container.running, container.restarting = True, False
        container.started_ns = next(_clock)
        container.pid += 1
        self.emit(
            "container.started",
            {
                "id": container_id,
                "pid": container.pid,
                "started_ns": container.started_ns,
                "restart_count": container.restart_count,
            },
        )

    def give_up(self, container_id: str, **changes: Any) -> None:
        """Its policy is over while it waits to be started again."""
        container = self.containers[container_id]
        container.restarting = False
        container.exit = {**(container.exit or {}), "restarting": False, **changes}
        self.emit("container.exit", container.exit)

    def becomes(self, container_id: str, status: str, exit_code: int = 0) -> None:
        """Its health changes."""
        container = self.containers[container_id]
        before = container.health or {"changes": 0}
        result = {"start_ns": 1, "end_ns": 2, "exit_code": exit_code, "output": status}
        container.health = {
            "status": status,
            "failing_streak": int(status == "unhealthy"),
            "changes": before["changes"] + 1,
            "log": [result],
        }
        told = {"id": container_id, "started_ns": container.started_ns, **container.health}
        self.emit("container.health", told)

    def die_of_signal(self, container: GuestContainer, number: int) -> None:
        self.exit(container.id, 128 + number)

    def exec_output(self, exec_id: str, data: bytes, stream: int = 1) -> None:
        target = self.execs[exec_id].stream
        if target is not None:
            target.send(frame(data, stream))

    def exec_exit(self, exec_id: str, code: int = 0, *, end_stream: bool = True) -> None:
        execution = self.execs[exec_id]
        execution.exit = code
        if execution.stream is not None and end_stream:
            execution.stream.finish()
        payload = {"exec_id": exec_id, "id": execution.container_id, "exit_code": code}
        self.emit("exec.exit", payload)

    def emit(self, name: str, payload: dict[str, Any]) -> None:
        event = SimpleNamespace(
            id=next(self._ids), name=name, time_ns=time.time_ns(), payload=payload
        )
        self.unacknowledged.append(event)
        if self.handler is not None:
            self._spawn(self._deliver(event))

    def set_handler(self, handler: Callable[[Any], Awaitable[None]] | None) -> None:
        self.handler = handler
        if handler is not None:
            for event in tuple(self.unacknowledged):
                self._spawn(self._deliver(event))

    async def _deliver(self, event: SimpleNamespace) -> None:
        assert self.handler is not None
        await self.handler(event)
        self.unacknowledged.remove(event)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The calls.

    async def _system_info(self) -> Any:
        return {
            "kernel": "6.12.0", "arch": "x86_64", "memory_bytes": 1 << 30, "cpus": 2,
            "agent": {"version": "0.1.0", "digest": "d"}, "boot_id": self.boot_id,
        }  # fmt: skip

    async def _container_start(self, id: str, **params: Any) -> Any:
        container = self.containers.get(id)
        if self.hold_start is not None:
            await self.hold_start.wait()
        if self.start_error is not None:
            raise self.start_error
        if container is None:
            container = self.containers[id] = GuestContainer(id, params)
        container.running, container.exit = True, None
        container.started_ns = next(_clock)
        answer = {"pid": container.pid, "started_ns": container.started_ns}
        self.on_start(container)
        return answer

    async def _container_attach(
        self, id: str, stream: int, stdin: bool, from_: str | int, follow: bool = True
    ) -> Any:
        if self.attach_errors:
            raise self.attach_errors.pop(0)
        container = self.containers.get(id)
        if container is None:
            raise AgentError(f"no container {id}", code="not_found")
        offset = {"start": 0, "now": len(container.log)}.get(str(from_), from_)
        assert isinstance(offset, int)
        target = self.streams[stream]
        if container.log[offset:]:
            target.send(bytes(container.log[offset:]))
        if follow and container.running:
            container.followers.append(target)
        else:
            target.finish()
        return {"offset": offset, "running": container.running}

    async def _container_kill(
        self, id: str, signal: int, final: bool = False, by_user: bool = False
    ) -> Any:
        container = self.containers[id]
        container.final = container.final or final
        if container.restarting:
            if final:
                self.give_up(id)
            return {"unpaused": False}
        if not container.running:
            raise AgentError("not running", code="conflict")
        container.signals.append(signal)
        unpaused, container.paused = container.paused and final, container.paused and not final
        self.on_signal(container, signal)
        return {"unpaused": unpaused}

    async def _container_pause(self, id: str) -> Any:
        self.containers[id].paused = True
        return {}

    async def _container_unpause(self, id: str) -> Any:
        self.containers[id].paused = False
        return {}

    async def _container_update(self, id: str, start: Any, resources: Any) -> Any:
        if self.update_error is not None:
            raise self.update_error
        self.containers[id].params = start
        return {}

    async def _container_health(self, id: str) -> Any:
        return {"health": self.containers[id].health}

    async def _container_stats(self, ids: list[str], pressure: bool) -> Any:
        samples = [
            {"id": id, "time_ns": next(_clock), "files": {}, "net_dev": ""}
            for id in ids
            if self.containers[id].running
        ]
        return {
            "samples": samples,
            "cpu": "cpu 1 2 3 4 5 6 7 8",
            "clock_ticks": 100,
            "cpus": 2,
            "memory_bytes": 1 << 30,
        }

    async def _container_resize(self, id: str, rows: int, cols: int) -> Any:
        self.containers[id].size = (rows, cols)
        return {}

    async def _container_list(self) -> Any:
        return {
            "containers": [
                {
                    "id": item.id,
                    "status": item.status,
                    "restart_count": item.restart_count,
                    "health": item.health,
                    "pid": item.pid,
                    "started_ns": item.started_ns,
                    "exit": item.exit,
                    "log_bytes": len(item.log),
                }
                for item in self.containers.values()
            ],
            "after_event": max((event.id for event in self.unacknowledged), default=0),
        }

    async def _container_remove(self, id: str) -> Any:
        container = self.containers.get(id)
        if container is not None and container.running:
            raise AgentError("running", code="conflict")
        self.containers.pop(id, None)
        return {}

    async def _container_archive(self, stream: int, op: str, **params: Any) -> Any:
        """`archive_reply`: what comes on the stream; of a write once the host has ended it."""
        target = self.streams[stream]

        def answer() -> None:
            target.send(self.archive_reply)
            if not self.archive_open:
                target.finish()

        if op == "write" and self.archive_waits:
            target.on_input_end = answer
        else:
            answer()
        return {}

    async def _volume_remove(self, name: str) -> Any:
        self.volumes.pop(name, None)
        return {}

    async def _container_usage(self, ids: list[str], stream: int) -> Any:
        sizes = {id: self.written[id] for id in ids if id in self.written}
        self.streams[stream].send(json.dumps(sizes).encode())
        self.streams[stream].finish()
        return {}

    async def _volume_usage(self, names: list[str], stream: int) -> Any:
        sizes = {name: self.volumes[name] for name in names if name in self.volumes}
        self.streams[stream].send(json.dumps(sizes).encode())
        self.streams[stream].finish()
        return {}

    async def _exec_start(self, exec_id: str, id: str, stream: int | None, **params: Any) -> Any:
        if self.start_error is not None:
            raise self.start_error
        target = None if stream is None else self.streams[stream]
        execution = self.execs[exec_id] = GuestExec(exec_id, id, params, target)
        self.on_exec(execution)
        return {"pid": execution.pid}

    async def _exec_resize(self, exec_id: str, rows: int, cols: int) -> Any:
        return {}

    async def _exec_list(self) -> Any:
        return {
            "execs": [
                {"exec_id": item.id, "id": item.container_id, "pid": item.pid, "exit": item.exit}
                for item in self.execs.values()
            ]
        }


class FakeLink:
    """A link to a FakeAgent. Calls are delivered in the order in which they were made."""

    _numbers = itertools.count(1)

    def __init__(self, agent: FakeAgent) -> None:
        self.agent = agent
        self.closed = False

    async def call(self, method: str, params: dict[str, Any], *, timeout: float = 30.0) -> Any:
        if self.closed:
            raise LinkClosed("the link is closed")
        return await self.agent.call(method, params)

    def open_stream(self) -> FakeStream:
        stream = FakeStream(next(self._numbers))
        self.agent.streams[stream.id] = stream
        return stream

    def on_event(self, handler: Callable[[Any], Awaitable[None]]) -> None:
        self.agent.set_handler(handler)


class FakeMachine:
    """A machine that boots at once. `alive`: it ran before the engine did."""

    def __init__(
        self, agent: FakeAgent, *, alive: bool = False, busybox: Path | None = None
    ) -> None:
        self.name = "m"
        self.agent = agent
        self.alive = alive
        self.link: FakeLink | None = None
        self.state = MachineState.STOPPED
        self.paused: str | None = None
        self.boots = 0
        self.suspended = False
        self.can_save = True
        self.continued = alive
        self.pins: dict[str, list[str]] = {}
        self.attached: list[str] = []
        self.busybox = busybox
        self.config = MachineConfig(cpus=1, memory_mib=512, disk_gib=8, arch="amd64")
        self._on_link: list[Callable[[Any], None]] = []
        self._on_state: list[Callable[[MachineState], None]] = []
        self._on_pause: list[Callable[[str | None], None]] = []

    @asynccontextmanager
    async def held(self, doing: str) -> AsyncIterator[None]:
        if self.link is not None:
            raise Conflict(f"the machine is {self.state.value}")
        yield

    async def stop(self) -> None:
        if self.link is not None:
            self.die()

    async def save(self, directory: Path, rows: Callable[[Path], None]) -> None:
        """Only its disk: what QEMU has is not there."""
        (directory / "data.qcow2").write_bytes(b"disk")
        rows(directory / "state.db")

    async def suspend(self) -> None:
        if not self.can_save:
            raise Conflict("it cannot be saved")
        link, self.link = self.link, None
        assert link is not None
        link.closed = True
        self.suspended = True
        self._state(MachineState.STOPPED)

    async def cut_off(self) -> None:
        await self.stop()

    async def adopt(self) -> bool:
        if self.alive:
            self._up()
        return self.alive

    async def ensure_running(self, progress: Any = None, *, template: bool = True) -> FakeLink:
        if self.link is None:
            await asyncio.sleep(0)
            self.boots += 1
            self.continued, self.suspended = self.suspended, False
            self._up()
        assert self.link is not None
        return self.link

    async def prepare_image(self, progress: Any = None) -> Any:
        assert self.busybox is not None
        return SimpleNamespace(busybox=self.busybox)

    async def attach_layers(self, layers: Sequence[Any]) -> None:
        self.attached += [layer.diff_id for layer in layers]

    def pin_layers(self, holder: str, diff_ids: Sequence[str]) -> None:
        self.pins[holder] = list(diff_ids)

    def unpin_layers(self, holder: str) -> None:
        self.pins.pop(holder, None)

    def on_link(self, callback: Callable[[Any], None]) -> None:
        self._on_link.append(callback)

    def on_state(self, callback: Callable[[MachineState], None]) -> None:
        self._on_state.append(callback)

    def on_pause(self, callback: Callable[[str | None], None]) -> None:
        self._on_pause.append(callback)

    def pause(self, reason: str | None) -> None:
        """The guest stands still, or goes on."""
        self.paused = reason
        for callback in self._on_pause:
            callback(reason)

    def inspect(self) -> dict[str, Any]:
        return {}

    async def aclose(self) -> None:
        self.agent.set_handler(None)

    def die(self) -> None:
        """QEMU is gone, and everything in it but the disk."""
        if self.link is not None:
            self.link.closed = True
        self.link = None
        self.agent.set_handler(None)
        self.agent.execs.clear()
        for container in self.agent.containers.values():
            for follower in container.followers:
                follower.cut("the machine is gone")
        self.agent.containers.clear()
        self._state(MachineState.STOPPED)

    def _up(self) -> None:
        self.link = FakeLink(self.agent)
        self._state(MachineState.RUNNING)
        for callback in self._on_link:
            callback(self.link)

    def _state(self, state: MachineState) -> None:
        self.state = state
        for callback in self._on_state:
            callback(state)


def image(name: str = "busybox:latest", **config: Any) -> Image:
    """An image of two layers with the command `sh`."""
    return Image(
        id="sha256:" + "1" * 64,
        tags=(name,),
        digests=(),
        created_ns=1,
        architecture="amd64",
        os="linux",
        variant="",
        size=1,
        config={"Cmd": ["sh"], "Env": ["PATH=/bin"], **config},
        diff_ids=("sha256:" + "a" * 64, "sha256:" + "b" * 64),
        manifest_digest="sha256:" + "2" * 64,
        raw_config=b"{}",
    )


class FakeStore:
    """An image store that has what it is given."""

    def __init__(self, *images: Image) -> None:
        self.images = list(images)
        self.held: dict[str, Image] = {}
        self.imported: list[tuple[Path, str]] = []
        self.layer_sizes: dict[str, int] = {}
        self.upkeep = SimpleNamespace(layer_sizes=lambda: self.layer_sizes)

    def resolve(self, ref: str, platform: str | None = None) -> Image:
        for item in self.images:
            if ref in (item.id, *item.tags) or f"{ref}:latest" in item.tags:
                return item
        raise ImageNotFound(f"No such image: {ref}")

    def layer_files(self, image: Image) -> list[LayerFile]:
        return [LayerFile(it, Path("/layers") / it, "uuid") for it in image.diff_ids]

    def list(self) -> Sequence[Image]:
        return self.images

    def remove(self, ref: str, force: bool = False) -> Sequence[Any]:
        self.images.remove(self.resolve(ref))
        return []

    def import_layout(self, directory: Path, name: str, *, platform: str | None = None) -> Image:
        self.imported.append((directory, name))
        self.images.append(image(name))
        return self.images[-1]

    def hold(self, holder: str, image: Image) -> None:
        self.held[holder] = image

    def hold_manifest(self, holder: str, manifest_digest: str) -> None:
        self.held[holder] = next(it for it in self.images if it.manifest_digest == manifest_digest)

    def release(self, holder: str) -> None:
        self.held.pop(holder, None)

    def holders(self) -> Sequence[str]:
        return list(self.held)

    def close(self) -> None:
        pass


@dataclass
class World:
    """An engine among stand-ins."""

    home: Path
    agent: FakeAgent
    machine: FakeMachine
    store: FakeStore
    engine: Engine

    async def run(self, name: str | None = None, **host_config: Any) -> Container:
        """Create and start a container."""
        container = await self.create(name, **host_config)
        await self.engine.containers.start(container.id)
        return self.engine.containers.get(container.id)

    async def create(self, name: str | None = None, **host_config: Any) -> Container:
        config = {"Image": "busybox", "Cmd": ["true"], "OpenStdin": True}
        return await self.engine.containers.create(name, config, host_config)

    def events(self) -> list[str]:
        """The actions of all events so far."""
        return [event.action for event in self.all_events()]

    def all_events(self) -> list[Event]:
        self.engine.events.flush()
        return self.engine._state.events_after(0)

    async def kill_engine(self) -> None:
        """`kill -9` of the engine, and a new one: the machine lives on, if it does."""
        self.agent.set_handler(None)
        self.engine._state.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        self.machine = FakeMachine(self.agent, alive=self.machine.link is not None)
        self.engine = await open_engine(self.home, self.machine, self.store)


async def open_engine(home: Path, machine: FakeMachine, store: FakeStore) -> Engine:
    return await Engine.open(
        Home(home),
        "m",
        Settings(),
        machine=machine,  # type: ignore[arg-type]  # a stand-in has only what is asked of it
        store=store,  # type: ignore[arg-type]  # the same
    )


def play(home: Path, scene: Callable[[World], Awaitable[None]], *, seconds: float = 20.0) -> None:
    """Run a scene with a fresh engine; at the end the engine is closed."""

    async def act() -> None:
        agent = FakeAgent()
        machine = FakeMachine(agent)
        store = FakeStore(image())
        world = World(home, agent, machine, store, await open_engine(home, machine, store))
        try:
            async with asyncio.timeout(seconds):
                await scene(world)
        finally:
            await world.engine.aclose()

    asyncio.run(act())


async def until(condition: Callable[[], bool], what: str) -> None:
    """Let the others run until `condition` holds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.001 if _ > 100 else 0)
    raise AssertionError(f"waited in vain for {what}")


async def collect(attachment: Attachment) -> dict[int, bytes]:
    """All output of an attachment, per stream."""
    output: dict[int, bytes] = {}
    async for stream, payload in attachment.frames():
        output[stream] = output.get(stream, b"") + payload
    return output
