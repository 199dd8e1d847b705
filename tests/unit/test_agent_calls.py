"""The agent's calls, over a real link, with plain processes in place of containers."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import Host, agent_and_host, output_of, read_all, split_frames

from wherry.errors import AgentError
from wherry.link import StreamReset
from wherry_guest import identity
from wherry_guest.agent import cpio
from wherry_guest.agent.logframes import STDERR, STDOUT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the agent runs on Linux")

Scenario = Callable[[Host], Coroutine[Any, Any, None]]


def drive(directory: Path, scenario: Scenario, ready: bool = True) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), agent_and_host(directory, ready) as host:
            await scenario(host)

    asyncio.run(main())


async def refused(call: Coroutine[Any, Any, Any]) -> AgentError:
    with pytest.raises(AgentError) as caught:
        await call
    return caught.value


def test_output_and_exit_code_of_a_container(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sh", "-c", "echo out; echo err >&2; exit 3")
        stream, answer = await host.attach("c1")
        assert answer["offset"] == 0
        data = await read_all(stream)
        frames = split_frames(data)
        assert output_of(frames, STDOUT) == b"out\n"
        assert output_of(frames, STDERR) == b"err\n"
        exit = await host.event("container.exit", id="c1")
        assert exit["exit_code"] == 3
        assert exit["signal"] is None
        assert exit["log_bytes"] == len(data)
        assert exit["started_ns"] <= exit["finished_ns"]
        (listed,) = (await host.link.call("container.list", {}))["containers"]
        assert listed["status"] == "exited"
        assert listed["exit"] == exit
        assert listed["log_bytes"] == len(data)

    drive(tmp_path, scenario)


def test_exit_is_told_after_all_output_is_in_the_log(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sh", "-c", "head -c 3000000 /dev/zero")
        exit = await host.event("container.exit", id="c1")
        log = host.paths.container("c1").log / "log"
        assert log.stat().st_size == exit["log_bytes"]
        assert await host.output("c1") == bytes(3000000)

    drive(tmp_path, scenario)


def test_attach_right_behind_start_waits_for_it(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(host.start("c1", "echo", "hello"))
            output = group.create_task(host.output("c1"))
        assert output.result() == b"hello\n"

    drive(tmp_path, scenario)


def test_attach_behind_a_failing_start_is_not_found(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        async with asyncio.TaskGroup() as group:
            start = group.create_task(refused(host.start("c1", "/no/such/program")))
            attach = group.create_task(refused(host.attach("c1")))
        assert start.result().code == "start_failed"
        assert start.result().data["exit_code"] == 127
        assert attach.result().code == "not_found"
        assert (await host.link.call("container.list", {}))["containers"] == []
        assert host.zygote.kept == {}

    drive(tmp_path, scenario)


def test_late_reader_gets_the_whole_log_and_an_offset_goes_on(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sh", "-c", "echo one; sleep 0.05; echo two")
        await host.event("container.exit", id="c1")
        whole = await read_all((await host.attach("c1"))[0])
        first = 16 + len("one\n")
        stream, answer = await host.attach("c1", **{"from": first})
        assert answer == {"offset": first, "running": False}
        assert await read_all(stream) == whole[first:]
        stream, answer = await host.attach("c1", **{"from": "now"})
        assert answer["offset"] == len(whole)
        assert await read_all(stream) == b""
        error = await refused(host.attach("c1", **{"from": len(whole) + 1}))
        assert error.code == "invalid"

    drive(tmp_path, scenario)


def test_without_follow_the_stream_ends_at_the_present_end(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sh", "-c", "echo one; read line; echo $line", open_stdin=True)
        follower, _ = await host.attach("c1", stdin=True)
        first = await follower.read()
        assert await read_all((await host.attach("c1", follow=False))[0]) == first
        await follower.write(b"two\n")
        assert split_frames(await read_all(follower)) == [(STDOUT, b"two\n")]

    drive(tmp_path, scenario)


def test_half_close_closes_stdin_once(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "cat", open_stdin=True, stdin_once=True)
        stream, _ = await host.attach("c1", stdin=True)
        await stream.write(b"some input")
        await stream.end()
        assert split_frames(await read_all(stream)) == [(STDOUT, b"some input")]
        assert (await host.event("container.exit", id="c1"))["exit_code"] == 0

    drive(tmp_path, scenario)


def test_without_stdin_once_stdin_stays_open_for_the_next(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "head", "-n", "2", open_stdin=True)
        for line in (b"one\n", b"two\n"):
            stream, answer = await host.attach("c1", stdin=True)
            assert answer["running"]
            await stream.write(line)
            await stream.end()
        assert await host.output("c1") == b"one\ntwo\n"

    drive(tmp_path, scenario)


def test_container_without_open_stdin_reads_its_end(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "cat")
        assert (await host.event("container.exit", id="c1"))["exit_code"] == 0

    drive(tmp_path, scenario)


def test_much_data_through_cat_comes_back_whole(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "cat", open_stdin=True, stdin_once=True)
        stream, _ = await host.attach("c1", stdin=True)
        sent, received = hashlib.sha256(), hashlib.sha256()
        piece = bytes(range(256)) * 1024

        async def feed() -> None:
            for number in range(96):
                data = number.to_bytes(4, "big") + piece
                sent.update(data)
                await stream.write(data)
            await stream.end()

        async def collect() -> None:
            buffer = b""
            while chunk := await stream.read():
                buffer += chunk
                while len(buffer) >= 16 and len(buffer) >= 16 + int.from_bytes(buffer[4:8], "big"):
                    length = int.from_bytes(buffer[4:8], "big")
                    received.update(buffer[16 : 16 + length])
                    buffer = buffer[16 + length :]
            assert not buffer

        async with asyncio.TaskGroup() as group:
            group.create_task(feed())
            group.create_task(collect())
        assert received.digest() == sent.digest()

    drive(tmp_path, scenario)


def test_reader_that_does_not_read_stops_nobody(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sh", "-c", "read x; head -c 8000000 /dev/zero", open_stdin=True)
        lazy, _ = await host.attach("c1", stdin=True)
        eager, _ = await host.attach("c1")
        await lazy.write(b"go\n")
        exit = await host.event("container.exit", id="c1")
        assert exit["log_bytes"] > 8000000
        assert len(await read_all(eager)) == exit["log_bytes"]
        assert len(await read_all(lazy)) == exit["log_bytes"]

    drive(tmp_path, scenario)


def test_reader_that_goes_away_stops_nobody(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sh", "-c", "echo one; read x; echo two", open_stdin=True)
        gone, _ = await host.attach("c1", stdin=True)
        await gone.read()
        gone.reset("the client went away")
        other, _ = await host.attach("c1", stdin=True)
        await other.write(b"\n")
        assert output_of(split_frames(await read_all(other)), STDOUT) == b"one\ntwo\n"

    drive(tmp_path, scenario)


def test_terminal_has_one_output_a_size_and_an_end(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        script = "stty size; read x; stty size; echo err >&2"
        await host.start("c1", "sh", "-c", script, tty=True, open_stdin=True)
        stream, _ = await host.attach("c1", stdin=True)
        await host.link.call("container.resize", {"id": "c1", "rows": 33, "cols": 77})
        await stream.write(b"go\n")
        frames = split_frames(await read_all(stream))
        assert output_of(frames, STDERR) == b""
        assert output_of(frames, STDOUT).endswith(b"33 77\r\nerr\r\n")
        await host.event("container.exit", id="c1")
        error = await refused(
            host.link.call("container.resize", {"id": "c1", "rows": 1, "cols": 1})
        )
        assert error.code == "conflict"

    drive(tmp_path, scenario)


def test_signal_ends_a_container_with_its_number(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sleep", "1000")
        await host.link.call("container.kill", {"id": "c1", "signal": 15})
        exit = await host.event("container.exit", id="c1")
        assert (exit["exit_code"], exit["signal"]) == (143, 15)
        again = host.link.call("container.kill", {"id": "c1", "signal": 15})
        assert (await refused(again)).code == "conflict"
        unknown = host.link.call("container.kill", {"id": "c2", "signal": 15})
        assert (await refused(unknown)).code == "not_found"

    drive(tmp_path, scenario)


def test_wrong_signal_is_invalid(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sleep", "1000")
        error = await refused(host.link.call("container.kill", {"id": "c1", "signal": 999}))
        assert error.code == "invalid"
        await host.link.call("container.kill", {"id": "c1", "signal": 9})

    drive(tmp_path, scenario)


def test_repeated_start_is_answered_as_the_first(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        async with asyncio.TaskGroup() as group:
            starts = [group.create_task(host.start("c1", "sleep", "1000")) for _ in range(3)]
        assert len({start.result()["pid"] for start in starts}) == 1
        await host.link.call("container.kill", {"id": "c1", "signal": 9})

    drive(tmp_path, scenario)


def test_restart_keeps_the_log_going(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        for word in ("one", "two"):
            await host.start("c1", "echo", word)
            stream, _ = await host.attach("c1")
            data = await read_all(stream)
            await host.event("container.exit", id="c1", log_bytes=len(data))
        assert split_frames(data) == [(STDOUT, b"one\n"), (STDOUT, b"two\n")]

    drive(tmp_path, scenario)


def test_remove_takes_everything_and_is_idempotent(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        paths = host.paths.container("c1")
        await host.start("c1", "sleep", "1000", files={"hosts": "127.0.0.1 localhost\n"})
        assert (paths.run / "hosts").read_text() == "127.0.0.1 localhost\n"
        remove = {"id": "c1"}
        assert (await refused(host.link.call("container.remove", remove))).code == "conflict"
        await host.link.call("container.kill", {"id": "c1", "signal": 9})
        await host.event("container.exit", id="c1")
        for _ in range(2):
            await host.link.call("container.remove", remove)
        assert not paths.data.exists()
        assert not paths.run.exists()
        assert (await host.link.call("container.list", {}))["containers"] == []

    drive(tmp_path, scenario)


@pytest.mark.parametrize("id", ["../escape", "a/b", "", ".", "..", ".x", "x\0y"])
@pytest.mark.parametrize("method", ["container.start", "container.remove", "container.attach"])
def test_hostile_id_is_invalid_everywhere(tmp_path: Path, method: str, id: str) -> None:
    async def scenario(host: Host) -> None:
        stream = host.link.open_stream()
        params = {"id": id, "spec": {}, "layers": [], "stream": stream.id}
        assert (await refused(host.link.call(method, params))).code == "invalid"
        stream.reset("done")

    drive(tmp_path, scenario)


def test_hostile_file_name_is_invalid(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        error = await refused(host.start("c1", "true", files={"../../etc/passwd": "x"}))
        assert error.code == "invalid"

    drive(tmp_path, scenario)


def test_layer_that_is_not_attached_is_a_conflict(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        params = {"id": "c1", "spec": {"process": {}}, "layers": ["sha256:aa"]}
        error = await refused(host.link.call("container.start", params))
        assert (error.code, error.message) == ("conflict", "layer sha256:aa is not attached")

    drive(tmp_path, scenario)


def test_nothing_starts_before_the_setup(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        error = await refused(host.start("c1", "true"))
        assert error.code == "conflict"
        assert "system.setup" in error.message

    drive(tmp_path, scenario, ready=False)


@pytest.mark.parametrize("stored", ["", "{}", "[1]", "\0\0"])
def test_exit_file_that_lost_its_contents_is_no_exit(tmp_path: Path, stored: str) -> None:
    container = tmp_path / "data" / "containers" / "c1"
    (container / "log").mkdir(parents=True)
    (container / "exit.json").write_text(stored)

    async def scenario(host: Host) -> None:
        (listed,) = (await host.link.call("container.list", {}))["containers"]
        assert (listed["status"], listed["exit"]) == ("exited", None)

    drive(tmp_path, scenario)


def test_repeated_setup_answers_as_the_first(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        params = {"disk_serial": "x", "time_ns": 0, "entropy": "", "hostname": "h", "network": None}
        assert (await host.link.call("system.setup", params))["disk"] == "mounted"

    drive(tmp_path, scenario)


def test_info_tells_both_digests(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        info = await host.link.call("system.info", {})
        assert info["agent"] == host.link.peer["agent"]
        assert info["agent"]["digest"] == identity.digest()
        assert info["pid1"]["digest"] == "fake"
        assert info["arch"] in ("amd64", "arm64")

    drive(tmp_path, scenario)


def start_exec(host: Host, exec_id: str, *args: str, **options: Any) -> Any:
    params = {"exec_id": exec_id, "id": "c1", "process": {"args": list(args)}, **options}
    return host.link.call("exec.start", params)


def test_exec_has_streams_stdin_and_exit(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sleep", "1000")
        stream = host.link.open_stream()
        script = "cat; echo err >&2; exit 5"
        await start_exec(host, "e1", "sh", "-c", script, stream=stream.id, stdin=True)
        await stream.write(b"x" * 300000)
        await stream.end()
        frames = split_frames(await read_all(stream))
        assert output_of(frames, STDOUT) == b"x" * 300000
        assert output_of(frames, STDERR) == b"err\n"
        (listed,) = (await host.link.call("exec.list", {}))["execs"]
        assert listed["exit"] == 5, "who has read the stream finds the exit code"
        exit = await host.event("exec.exit", exec_id="e1")
        assert exit == {"exec_id": "e1", "id": "c1", "exit_code": 5}
        await host.link.call("container.kill", {"id": "c1", "signal": 9})

    drive(tmp_path, scenario)


def test_slow_reader_slows_an_exec_and_loses_nothing(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sleep", "1000")
        stream = host.link.open_stream()
        await start_exec(host, "e1", "sh", "-c", "head -c 9000000 /dev/zero", stream=stream.id)
        other = host.link.open_stream()
        await start_exec(host, "e2", "echo", "quick", stream=other.id)
        assert split_frames(await read_all(other)) == [(STDOUT, b"quick\n")]
        assert all(event.payload["exec_id"] != "e1" for event in host.events)
        frames = split_frames(await read_all(stream))
        assert output_of(frames, STDOUT) == bytes(9000000)
        await host.event("exec.exit", exec_id="e1")
        await host.link.call("container.kill", {"id": "c1", "signal": 9})

    drive(tmp_path, scenario)


def test_exec_goes_on_when_its_reader_goes(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sleep", "1000")
        stream = host.link.open_stream()
        await start_exec(host, "e1", "sh", "-c", "head -c 9000000 /dev/zero", stream=stream.id)
        stream.reset("the client went away")
        assert (await host.event("exec.exit", exec_id="e1"))["exit_code"] == 0
        await host.link.call("container.kill", {"id": "c1", "signal": 9})

    drive(tmp_path, scenario)


def test_exec_that_leaves_a_daemon_ends_all_the_same(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sleep", "1000")
        stream = host.link.open_stream()
        await start_exec(host, "e1", "sh", "-c", "echo said; sleep 30 &", stream=stream.id)
        assert split_frames(await read_all(stream)) == [(STDOUT, b"said\n")]
        await host.link.call("container.kill", {"id": "c1", "signal": 9})

    drive(tmp_path, scenario)


def test_exec_without_a_stream_runs_and_is_told(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sleep", "1000")
        await start_exec(host, "e1", "sh", "-c", "echo lost; exit 4")
        assert (await host.event("exec.exit", exec_id="e1"))["exit_code"] == 4
        await host.link.call("container.kill", {"id": "c1", "signal": 9})

    drive(tmp_path, scenario)


def test_exec_terminal_resizes_and_can_be_killed(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sleep", "1000")
        stream = host.link.open_stream()
        script = "read x; stty size; sleep 1000"
        await start_exec(host, "e1", "sh", "-c", script, stream=stream.id, stdin=True, tty=True)
        await host.link.call("exec.resize", {"exec_id": "e1", "rows": 5, "cols": 9})
        await stream.write(b"go\n")
        seen = b""
        while b"5 9" not in seen:
            seen += await stream.read()
        await host.link.call("exec.kill", {"exec_id": "e1", "signal": 9})
        assert (await host.event("exec.exit", exec_id="e1"))["exit_code"] == 137
        await read_all(stream)
        await host.link.call("container.kill", {"id": "c1", "signal": 9})

    drive(tmp_path, scenario)


def test_exec_failures_have_codes(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        assert (await refused(start_exec(host, "e1", "true"))).code == "not_found"
        await host.start("c1", "sleep", "1000")
        error = await refused(start_exec(host, "e1", "/no/such/program"))
        assert (error.code, error.data["exit_code"]) == ("start_failed", 127)
        await host.link.call("container.kill", {"id": "c1", "signal": 9})
        await host.event("container.exit", id="c1")
        assert (await refused(start_exec(host, "e2", "true"))).code == "conflict"

    drive(tmp_path, scenario)


def test_byte_code_comes_as_a_cpio(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        stream = host.link.open_stream()
        await host.link.call("system.bytecode", {"stream": stream.id}, timeout=60)
        names = [name for name, _ in cpio.unpack(await read_all(stream))]
        suffix = f"wherry_guest/agent/__pycache__/logs.{sys.implementation.cache_tag}.pyc"
        assert any(name.endswith(suffix) for name in names)

    drive(tmp_path, scenario)


def agent_archive(extra: bytes = b"") -> bytes:
    parent = identity.package_parent()
    paths = sorted((parent / "wherry_guest").rglob("*.py"))
    files = [(path.relative_to(parent).as_posix(), path.read_bytes() + extra) for path in paths]
    return cpio.pack(files)


def test_replacement_is_checked_and_handed_to_pid_1(tmp_path: Path) -> None:
    async def replace(host: Host, archive: bytes, digest: str) -> None:
        stream = host.link.open_stream()
        call = asyncio.ensure_future(
            host.link.call("agent.replace", {"stream": stream.id, "digest": digest})
        )
        await stream.write(archive)
        await stream.end()
        await call

    async def scenario(host: Host) -> None:
        archive = agent_archive(b"# newer\n")
        error = await refused(replace(host, archive, "0" * 64))
        assert error.code == "invalid"
        assert "digest" in error.message
        assert (await refused(replace(host, b"garbage", "0" * 64))).code == "invalid"
        digest = error.message.split()[4].rstrip(",")
        await replace(host, archive, digest)
        async with asyncio.timeout(10):
            while host.zygote.replaced_by is None:
                await asyncio.sleep(0.01)
        directory, given = host.zygote.replaced_by
        assert given == digest
        assert identity.digest(Path(directory)) == digest

    drive(tmp_path, scenario)


def test_shutdown_terminates_kills_and_powers_off(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("polite", "sleep", "1000")
        await host.start("stubborn", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
        await host.link.call("system.shutdown", {"timeout": 0.2})
        assert (await host.event("container.exit", id="polite"))["signal"] == 15
        assert (await host.event("container.exit", id="stubborn"))["signal"] == 9
        assert await asyncio.to_thread(host.zygote.off.wait, 20)
        error = await refused(host.start("late", "true"))
        assert error.code == "conflict"

    drive(tmp_path, scenario)


def test_unknown_stream_is_invalid(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "true")
        call = host.link.call("container.attach", {"id": "c1", "stream": 4711})
        assert (await refused(call)).code == "invalid"

    drive(tmp_path, scenario)


def test_session_that_ends_resets_readers_and_containers_go_on(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sh", "-c", "read x; echo done", open_stdin=True)
        stream, _ = await host.attach("c1")
        stream.reset("engine killed")
        with pytest.raises(StreamReset):
            await stream.read()
        again, answer = await host.attach("c1", stdin=True)
        assert answer["running"]
        await again.write(b"\n")
        assert split_frames(await read_all(again)) == [(STDOUT, b"done\n")]

    drive(tmp_path, scenario)
