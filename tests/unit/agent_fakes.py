"""An agent in a thread, with a PID 1 that starts plain processes, and a host's link to it.

No namespaces and no root: what is tested is everything between the link and the descriptors.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from wherry.link import AgentEvent, Link, Stream, open_link, over_socket
from wherry_guest.agent.logframes import HEADER
from wherry_guest.agent.paths import Paths
from wherry_guest.agent.server import Agent
from wherry_guest.core.syscalls import Kernel
from wherry_guest.loop import Loop
from wherry_guest.zygote import Exited, Kept, Message, Pid1Info, Rootfs, SpawnFailed, Started

DEADLINE = 20.0


class FakeZygote:
    """PID 1 for an agent; starts `process.args` on this machine, and keeps descriptors."""

    def __init__(self) -> None:
        self.off = threading.Event()
        self.replaced_by: tuple[str, str] | None = None
        self.kept: dict[str, list[int]] = {}
        self._messages: list[Message] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._reader, self._writer = os.pipe()
        self._lock = threading.Lock()

    def fileno(self) -> int:
        return self._reader

    def receive(self) -> list[Message]:
        with self._lock:
            os.read(self._reader, 4096)
            messages, self._messages = self._messages, []
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
        for name, fds in (keep or {}).items():
            self.keep(name, fds)
        self._run(key, spec["process"], stdio)

    def exec(
        self,
        key: str,
        target_pid: int,
        process: Mapping[str, Any],
        cgroup: str,
        stdio: tuple[int, int, int] | None,
        tty: bool,
    ) -> None:
        self._run(key, process, stdio)

    def keep(self, name: str, fds: Sequence[int]) -> None:
        self.drop(name)
        self.kept[name] = [os.dup(fd) for fd in fds]

    def drop(self, name: str) -> None:
        for fd in self.kept.pop(name, []):
            os.close(fd)

    def fetch(self) -> None:
        self._say(Kept({name: [os.dup(fd) for fd in fds] for name, fds in self.kept.items()}))

    def forget(self, key: str, drop: Sequence[str] = ()) -> None:
        for name in drop:
            self.drop(name)

    def replace_agent(self, directory: str, digest: str) -> None:
        self.replaced_by = (directory, digest)

    def poweroff(self) -> None:
        self.off.set()

    def info(self) -> Pid1Info:
        return Pid1Info("0", "fake")

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for name in list(self.kept):
            self.drop(name)

    def _run(
        self, key: str, process: Mapping[str, Any], stdio: tuple[int, int, int] | None
    ) -> None:
        terminal = None
        slave = -1
        if stdio is None:
            terminal, slave = os.openpty()
            stdio = (slave, slave, slave)
        try:
            child = subprocess.Popen(
                process["args"],
                stdin=stdio[0],
                stdout=stdio[1],
                stderr=stdio[2],
                start_new_session=True,
            )
        except OSError as error:
            message = f"execute {process['args'][0]}: {error.strerror}"
            self._say(SpawnFailed(key, message, error.errno or 0, 127, message))
            return
        finally:
            if slave >= 0:
                os.close(slave)
        self._processes.append(child)
        self._say(Started(key, child.pid, time.time_ns(), terminal))
        threading.Thread(target=self._reap, args=(key, child), daemon=True).start()

    def _reap(self, key: str, child: subprocess.Popen[bytes]) -> None:
        code = child.wait()
        status = code << 8 if code >= 0 else -code
        self._say(Exited(key, child.pid, status, time.time_ns()))

    def _say(self, message: Message) -> None:
        with self._lock:
            self._messages.append(message)
            os.write(self._writer, b"x")


class Host:
    """The engine's side: a link, and the events that came."""

    def __init__(self, link: Link, zygote: FakeZygote, paths: Paths) -> None:
        self.link = link
        self.zygote = zygote
        self.paths = paths
        self.events: list[AgentEvent] = []
        self._news = asyncio.Event()
        link.on_event(self._store)

    async def start(self, id: str, *args: str, **options: Any) -> dict[str, Any]:
        process = {"args": list(args), **options.pop("process", {})}
        params = {"id": id, "spec": {"process": process}, "layers": [], **options}
        return await self.link.call("container.start", params)

    async def attach(self, id: str, **options: Any) -> tuple[Stream, dict[str, Any]]:
        stream = self.link.open_stream()
        params = {"id": id, "stream": stream.id, "from": "start", **options}
        return stream, await self.link.call("container.attach", params)

    async def output(self, id: str, **options: Any) -> bytes:
        """All stdout and stderr of a container, to its end."""
        stream, _ = await self.attach(id, **options)
        return b"".join(payload for _, payload in split_frames(await read_all(stream)))

    async def event(self, name: str, **wanted: Any) -> dict[str, Any]:
        """The payload of the first such event, past or to come."""
        async with asyncio.timeout(DEADLINE):
            while True:
                for event in self.events:
                    if event.name == name and wanted.items() <= event.payload.items():
                        return event.payload
                self._news.clear()
                await self._news.wait()

    async def _store(self, event: AgentEvent) -> None:
        self.events.append(event)
        self._news.set()


@asynccontextmanager
async def agent_and_host(directory: Path, ready: bool = True) -> AsyncIterator[Host]:
    """Run an agent on `directory`. `ready`: as if `system.setup` had been called."""
    paths = Paths(directory / "run", directory / "data", directory / "cgroups")
    paths.run.mkdir(parents=True, exist_ok=True)
    if ready:
        paths.setup.write_text(json.dumps({"disk": "mounted", "timings": {}}))
    zygote = FakeZygote()
    errors: list[Exception] = []
    loop = Loop(errors.append)
    ours, theirs = socket.socketpair()
    ports = [theirs.detach()]

    def open_port() -> int:
        if not ports:
            raise FileNotFoundError("the host does not come back")
        return ports.pop()

    agent = Agent(loop, zygote, open_port, paths, Kernel(), lambda: None)  # type: ignore[arg-type]  # a fake
    agent.start()
    thread = threading.Thread(target=loop.run, name="agent")
    thread.start()

    async def connect() -> Any:
        return await over_socket(ours)

    link = await open_link(connect, deadline=DEADLINE)
    try:
        yield Host(link, zygote, paths)
    finally:
        await link.aclose()
        loop.stop()
        os.write(zygote._writer, b"x")
        thread.join(DEADLINE)
        zygote.close()
    assert not errors, errors


async def read_all(stream: Stream) -> bytes:
    chunks = []
    while chunk := await stream.read():
        chunks.append(chunk)
    return b"".join(chunks)


def split_frames(data: bytes) -> list[tuple[int, bytes]]:
    frames = []
    position = 0
    while position < len(data):
        stream, _, _, length, _ = HEADER.unpack_from(data, position)
        position += HEADER.size
        frames.append((stream, data[position : position + length]))
        position += length
    return frames


def output_of(frames: Sequence[tuple[int, bytes]], wanted: int) -> bytes:
    return b"".join(payload for stream, payload in frames if stream == wanted)
