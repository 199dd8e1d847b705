"""A machine without a VM, for tests: PID 1 and agent as processes, and a host's link to them."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent_process import Setting
from containers_harness import SPEC, cgroup_root, make_busybox, remove_cgroups
from waiting import PATIENCE

from wherry.link import AgentEvent, Link, Stream, StreamReset, local_socket, open_link
from wherry_guest.agent.logframes import HEADER

DEADLINE = 30.0 * PATIENCE


class AgentMachine:
    """The engine's side of it.

    Attributes:
        events: all that came, in order; a handler has stored them.
    """

    def __init__(self, setting: Setting, process: subprocess.Popen[str], link: Link) -> None:
        self.setting = setting
        self.process = process
        self.link = link
        self.events: list[AgentEvent] = []
        self._news = asyncio.Event()
        link.on_event(self._store)

    async def start(self, id: str, *args: str, **options: Any) -> dict[str, Any]:
        spec = copy.deepcopy(SPEC)
        spec["process"] |= {"args": list(args), **options.pop("process", {})}
        spec["linux"]["resources"] |= options.pop("resources", {})
        params = {"id": id, "spec": spec, "layers": ["busybox"], **options}
        return await self.link.call("container.start", params)

    async def exec(self, id: str, exec_id: str, *args: str, **options: Any) -> dict[str, Any]:
        process = {**SPEC["process"], "args": list(args)}
        params = {"exec_id": exec_id, "id": id, "process": process, **options}
        return await self.link.call("exec.start", params)

    async def attach(self, id: str, **options: Any) -> tuple[Stream, dict[str, Any]]:
        stream = self.link.open_stream()
        params = {"id": id, "stream": stream.id, "from": "start", **options}
        return stream, await self.link.call("container.attach", params)

    async def run(self, id: str, *args: str, **options: Any) -> tuple[int, bytes, bytes]:
        """(exit code, stdout, stderr) of a container."""
        await self.start(id, *args, **options)
        stream, _ = await self.attach(id)
        frames = split_frames(await read_all(stream))
        exit = await self.event("container.exit", id=id)
        out, err = (b"".join(data for kind, data in frames if kind == wanted) for wanted in (1, 2))
        return exit["exit_code"], out, err

    async def event(self, name: str, **wanted: Any) -> dict[str, Any]:
        """The payload of the first such event, past or to come."""
        async with asyncio.timeout(DEADLINE):
            while True:
                for event in self.events:
                    if event.name == name and wanted.items() <= event.payload.items():
                        return event.payload
                self._news.clear()
                await self._news.wait()

    async def follow(self, id: str) -> bytes:
        """The whole log, resumed at its offset however often the agent dies."""
        log = b""
        async with asyncio.timeout(4 * DEADLINE):
            while True:
                try:
                    stream, answer = await self.attach(id, **{"from": len(log)})
                    assert answer["offset"] == len(log)
                    while chunk := await stream.read():
                        log += chunk
                except Exception as error:
                    if not is_restart(error):
                        raise
                else:
                    return log

    async def agent_pid(self) -> int:
        """Of the agent that runs now, by its parent."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for pid in children.read_text().split():
            with contextlib.suppress(OSError):
                if b"agent_process.py\0agent" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
        return 0

    async def kill_agent(self) -> None:
        """SIGKILL the agent, and wait until the next one answers."""
        async with asyncio.timeout(DEADLINE):
            while not (pid := await self.agent_pid()):
                await asyncio.sleep(0.01)
            os.kill(pid, signal.SIGKILL)
            while await self.agent_pid() in (0, pid):
                await asyncio.sleep(0.01)
            while True:
                try:
                    await self.link.call("system.info", {})
                except Exception as error:
                    if not is_restart(error):
                        raise
                else:
                    return

    async def _store(self, event: AgentEvent) -> None:
        self.events.append(event)
        self._news.set()


def is_restart(error: Exception) -> bool:
    """Whether the agent died meanwhile (so that one asks again)."""
    from wherry.errors import AgentError, LinkError

    return isinstance(error, StreamReset | LinkError) and not isinstance(error, AgentError)


@asynccontextmanager
async def agent_machine(directory: Path) -> AsyncIterator[AgentMachine]:
    """PID 1, an agent, one layer (busybox) that counts as attached, and a link."""
    directory.chmod(0o755)
    cgroups = cgroup_root() / f"wherry-test-{os.getpid()}-{time.monotonic_ns()}"
    cgroups.mkdir()
    setting = Setting(str(directory), str(cgroups))
    run = setting.paths.run
    make_busybox(run / "l" / "0")
    (run / "root").mkdir()
    layer = {"diff_id": "busybox", "lun": 0, "serial": "", "uuid": ""}
    (run / "layers.json").write_text(json.dumps({"highest_lun": 0, "layers": [layer]}))
    setting.paths.setup.write_text(json.dumps({"disk": "mounted", "timings": {}}))
    script = Path(__file__).with_name("agent_process.py")
    log = (directory / "console.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-B", str(script), "pid1", json.dumps(asdict(setting))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=log,
        stderr=log,
        text=True,
    )
    log.close()
    try:
        link = await open_link(local_socket(setting.port), deadline=DEADLINE)
        try:
            yield AgentMachine(setting, process, link)
        finally:
            await link.aclose()
    finally:
        process.kill()
        process.wait()
        for control in cgroups.glob("*/cgroup.kill"):
            control.write_text("1")
        remove_cgroups(cgroups)
    console = (directory / "console.log").read_text()
    assert "Traceback" not in console, console


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
        payload = data[position : position + length]
        assert len(payload) == length, "a torn frame"
        frames.append((stream, payload))
        position += length
    return frames
