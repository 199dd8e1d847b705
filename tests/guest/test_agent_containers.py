"""The agent with the real PID 1: containers run, are attached to, and outlive the agent."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from agent_machine import AgentMachine, agent_machine, is_restart, read_all, split_frames
from waiting import PATIENCE

from wherry.errors import AgentError
from wherry_guest import identity
from wherry_guest.agent import cpio

pytestmark = pytest.mark.guest

Scenario = Callable[[AgentMachine], Coroutine[Any, Any, None]]


def drive(directory: Path, scenario: Scenario) -> None:
    async def main() -> None:
        async with asyncio.timeout(110 * PATIENCE), agent_machine(directory) as machine:
            await scenario(machine)

    asyncio.run(main())


def test_container_runs_with_its_streams_apart(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        script = "echo out; echo err >&2; hostname; exit 7"
        assert await machine.run("c1", "sh", "-c", script) == (7, b"out\nbox\n", b"err\n")

    drive(tmp_path, scenario)


def test_failed_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        for command, code in (("/no/such", 127), ("/etc/passwd", 126)):
            with pytest.raises(AgentError) as caught:
                await machine.start("c1", command)
            assert caught.value.code == "start_failed"
            assert caught.value.data["exit_code"] == code
        assert (await machine.link.call("container.list", {}))["containers"] == []
        assert list(Path(machine.setting.cgroups).glob("*/")) == []

    drive(tmp_path, scenario)


def test_files_are_the_containers_own_etc(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        files = {"hosts": "10.0.0.1 a\n", "resolv.conf": "nameserver 10.0.0.2\n", "hostname": "h\n"}
        script = "cat /etc/hosts /etc/resolv.conf /etc/hostname; stat -c %a /"
        code, out, _ = await machine.run("c1", "sh", "-c", script, files=files)
        assert (code, out) == (0, b"10.0.0.1 a\nnameserver 10.0.0.2\nh\n755\n")

    drive(tmp_path, scenario)


def test_started_again_it_keeps_its_files_and_its_log(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        script = "echo run >> /runs; wc -l < /runs"
        for runs in (1, 2, 3):
            await machine.start("c1", "sh", "-c", script)
            stream, _ = await machine.attach("c1")
            log = await read_all(stream)
            await machine.event("container.exit", id="c1", log_bytes=len(log))
            assert [data for _, data in split_frames(log)] == [
                b"%d\n" % run for run in range(1, runs + 1)
            ]
        await machine.link.call("container.remove", {"id": "c1"})
        assert not machine.setting.paths.container("c1").data.exists()
        assert list(Path(machine.setting.cgroups).glob("*/")) == []

    drive(tmp_path, scenario)


def test_terminal_with_input_and_size(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        script = "tty; stty size; read x; stty size"
        size = {"rows": 10, "cols": 20}
        await machine.start("c1", "sh", "-c", script, tty=True, open_stdin=True, size=size)
        stream, _ = await machine.attach("c1", stdin=True)
        shown = b""
        while b"10 20\r\n" not in shown:  # what is typed earlier, the terminal echoes earlier
            shown += await stream.read(65536)
        await machine.link.call("container.resize", {"id": "c1", "rows": 33, "cols": 77})
        await stream.write(b"go\n")
        frames = split_frames(shown + await read_all(stream))
        assert {kind for kind, _ in frames} == {1}
        text = b"".join(data for _, data in frames)
        assert text == b"/dev/pts/0\r\n10 20\r\ngo\r\n33 77\r\n"

    drive(tmp_path, scenario)


def test_exec_joins_the_container_and_reports_its_exit(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await machine.start("c1", "sleep", "1000")
        stream = machine.link.open_stream()
        script = "hostname; cat; exit 4"
        await machine.exec("c1", "e1", "sh", "-c", script, stream=stream.id, stdin=True)
        await stream.write(b"input")
        await stream.end()
        assert b"".join(d for _, d in split_frames(await read_all(stream))) == b"box\ninput"
        assert (await machine.event("exec.exit", exec_id="e1"))["exit_code"] == 4
        terminal = machine.link.open_stream()
        await machine.exec("c1", "e2", "sh", "-c", "tty", stream=terminal.id, tty=True)
        assert b"/dev/pts/" in await read_all(terminal)
        with pytest.raises(AgentError) as caught:
            await machine.exec("c1", "e3", "/no/such")
        assert caught.value.data["exit_code"] == 127
        await machine.link.call("container.kill", {"id": "c1", "signal": 9})
        assert (await machine.event("container.exit", id="c1"))["exit_code"] == 137

    drive(tmp_path, scenario)


def test_execs_end_with_their_container(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await machine.start("c1", "sh", "-c", "read x", open_stdin=True)
        stream = machine.link.open_stream()
        await machine.exec("c1", "e1", "sleep", "1000", stream=stream.id)
        stdin, _ = await machine.attach("c1", stdin=True)
        await stdin.write(b"\n")
        assert (await machine.event("exec.exit", exec_id="e1"))["exit_code"] == 137
        assert await read_all(stream) == b""
        await machine.event("container.exit", id="c1", exit_code=0)

    drive(tmp_path, scenario)


def memory_of(pid: int) -> int:
    """Resident bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def test_256_mib_through_cat_in_flat_memory(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await machine.start("c1", "cat", open_stdin=True, stdin_once=True)
        stream, _ = await machine.attach("c1", stdin=True)
        piece = bytes(range(256)) * 4096
        sent, received = hashlib.sha256(), hashlib.sha256()
        before = memory_of(await machine.agent_pid())

        async def feed() -> None:
            for _ in range(256):
                sent.update(piece)
                await stream.write(piece)
            await stream.end()

        async def collect() -> None:
            rest = b""
            while chunk := await stream.read():
                rest += chunk
                while len(rest) >= 16 and len(rest) >= (
                    end := 16 + int.from_bytes(rest[4:8], "big")
                ):
                    received.update(rest[16:end])
                    rest = rest[end:]
            assert not rest

        async with asyncio.TaskGroup() as group:
            group.create_task(feed())
            group.create_task(collect())
        assert received.digest() == sent.digest()
        assert memory_of(await machine.agent_pid()) - before < 16 * 2**20

    drive(tmp_path, scenario)


COUNT = 60000


def test_no_byte_is_missing_when_the_agent_is_killed_while_a_container_prints(
    tmp_path: Path,
) -> None:
    async def scenario(machine: AgentMachine) -> None:
        script = f"i=0; while [ $i -lt {COUNT} ]; do echo line $i; i=$((i+1)); done; exit 3"
        await machine.start("c1", "sh", "-c", script)
        following = asyncio.ensure_future(machine.follow("c1"))
        kills = 0
        while not following.done() and kills < 8:
            await machine.kill_agent()
            kills += 1
        frames = split_frames(await following)
        assert kills >= 2
        expected = b"".join(b"line %d\n" % number for number in range(COUNT))
        assert b"".join(data for _, data in frames) == expected
        assert (await machine.event("container.exit", id="c1"))["exit_code"] == 3

    drive(tmp_path, scenario)


def test_no_byte_of_a_terminal_is_missing_either(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        script = f"i=0; while [ $i -lt {COUNT} ]; do echo line $i; i=$((i+1)); done"
        await machine.start("c1", "sh", "-c", script, tty=True)
        following = asyncio.ensure_future(machine.follow("c1"))
        kills = 0
        while not following.done() and kills < 4:
            await machine.kill_agent()
            kills += 1
        frames = split_frames(await following)
        expected = b"".join(b"line %d\r\n" % number for number in range(COUNT))
        assert b"".join(data for _, data in frames) == expected

    drive(tmp_path, scenario)


def test_what_ends_while_no_agent_runs_is_told_by_the_next(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        started = await machine.start("c1", "sh", "-c", "sleep 0.5; echo said; exit 9")
        await machine.exec("c1", "e1", "sleep", "1000")
        agent = await machine.agent_pid()
        os.kill(agent, signal.SIGSTOP)
        async with asyncio.timeout(20 * PATIENCE):
            while Path(f"/proc/{started['pid']}").exists():
                await asyncio.sleep(0.01)
        await machine.kill_agent()
        assert (await machine.event("container.exit", id="c1"))["exit_code"] == 9
        assert (await machine.event("exec.exit", exec_id="e1"))["exit_code"] == 137
        assert split_frames(await machine.follow("c1")) == [(1, b"said\n")]
        (listed,) = (await machine.link.call("container.list", {}))["containers"]
        assert listed["exit"]["exit_code"] == 9

    drive(tmp_path, scenario)


def test_new_agent_goes_on_with_stdin_kill_exec_and_terminal(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await machine.start("pipes", "cat", open_stdin=True, stdin_once=True)
        await machine.start("tty", "sh", tty=True, open_stdin=True)
        await machine.start("sleeper", "sleep", "1000")
        await machine.kill_agent()

        stream, answer = await machine.attach("pipes", stdin=True)
        assert answer["running"]
        await stream.write(b"after")
        await stream.end()
        assert split_frames(await read_all(stream)) == [(1, b"after")]

        await machine.link.call("container.resize", {"id": "tty", "rows": 4, "cols": 5})
        stream, _ = await machine.attach("tty", stdin=True)
        await stream.write(b"stty size; exit\n")
        assert b"4 5\r\n" in b"".join(d for _, d in split_frames(await read_all(stream)))

        stream = machine.link.open_stream()
        await machine.exec("sleeper", "e1", "echo", "hi", stream=stream.id)
        assert split_frames(await read_all(stream)) == [(1, b"hi\n")]
        await machine.link.call("container.kill", {"id": "sleeper", "signal": 9})
        assert (await machine.event("container.exit", id="sleeper"))["signal"] == 9

    drive(tmp_path, scenario)


def test_agent_is_replaced_in_place_and_containers_do_not_notice(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await machine.start("c1", "sh", "-c", "echo one; read x; echo two", open_stdin=True)
        parent = identity.package_parent()
        paths = sorted((parent / "wherry_guest").rglob("*.py"))
        sources = [
            (path.relative_to(parent).as_posix(), path.read_bytes() + b"\n# newer\n")
            for path in paths
        ]
        newer = tmp_path / "newer"
        for name, data in sources:
            (newer / name).parent.mkdir(parents=True, exist_ok=True)
            (newer / name).write_bytes(data)
        digest = identity.digest(newer)
        assert machine.link.peer["agent"]["digest"] != digest
        stream = machine.link.open_stream()
        params = {"stream": stream.id, "digest": digest}
        call = asyncio.ensure_future(machine.link.call("agent.replace", params))
        await stream.write(cpio.pack(sources))
        await stream.end()
        await call
        while machine.link.peer["agent"]["digest"] != digest:
            try:
                await machine.link.call("system.info", {})
            except Exception as error:
                if not is_restart(error):
                    raise
        again, _ = await machine.attach("c1", stdin=True)
        await again.write(b"\n")
        assert b"".join(d for _, d in split_frames(await read_all(again))) == b"one\ntwo\n"

    drive(tmp_path, scenario)


def test_shutdown_ends_what_runs_and_powers_off(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done"
        await machine.start("polite", "sh", "-c", script)
        await machine.start("stubborn", "sleep", "1000")
        await (await machine.attach("polite"))[0].read()
        await machine.link.call("system.shutdown", {"timeout": 1})
        assert (await machine.event("container.exit", id="polite"))["exit_code"] == 5
        assert (await machine.event("container.exit", id="stubborn"))["exit_code"] == 137
        assert await asyncio.to_thread(machine.process.wait, 30) == 0

    drive(tmp_path, scenario)


def test_a_process_that_does_not_read_its_input_is_not_the_agents_end(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        agent = await machine.agent_pid()
        await machine.start("c1", "sh", "-c", "exec <&-; sleep 0.5; exit 3", open_stdin=True)
        stream, _ = await machine.attach("c1", stdin=True)
        await stream.write(bytes(4_000_000))
        assert (await machine.event("container.exit", id="c1"))["exit_code"] == 3
        assert await machine.agent_pid() == agent

    drive(tmp_path, scenario)
