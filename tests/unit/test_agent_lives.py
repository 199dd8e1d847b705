"""Restarts, health and log drivers over a real link, with plain processes in place of containers.

The back-off begins at 100 ms: what must be waited for is waited for by events.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import Host, agent_and_host, output_of, read_all, split_frames
from waiting import eventually

from wherry.errors import AgentError
from wherry_guest.agent import container as container_module
from wherry_guest.agent import logfile
from wherry_guest.agent.logframes import STDOUT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the agent runs on Linux")

Scenario = Callable[[Host], Coroutine[Any, Any, None]]
ALWAYS = {"name": "always"}


def drive(directory: Path, scenario: Scenario) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), agent_and_host(directory) as host:
            await scenario(host)

    asyncio.run(main())


async def listed(host: Host, id: str) -> dict[str, Any]:
    containers = (await host.link.call("container.list", {}))["containers"]
    return next(it for it in containers if it["id"] == id)


async def update(host: Host, id: str, **start: Any) -> None:
    params = {"id": id, "spec": {"process": {"args": ["true"]}}, "layers": [], **start}
    await host.link.call("container.update", {"id": id, "start": params, "resources": None})


def told(host: Host, id: str) -> list[tuple[str, int]]:
    return [
        (event.name, event.payload.get("restart_count", 0))
        for event in host.events
        if event.payload.get("id") == id
    ]


def test_policy_starts_it_again_and_every_turn_is_told(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        policy = {"name": "on-failure", "max": 2}
        await host.start("c1", "sh", "-c", "echo turn; exit 4", restart=policy)
        last = await host.event("container.exit", id="c1", restarting=False)
        assert last["exit_code"] == 4
        assert last["restart_count"] == 2
        assert told(host, "c1") == [
            ("container.exit", 1),
            ("container.started", 1),
            ("container.exit", 2),
            ("container.started", 2),
            ("container.exit", 2),
        ]
        assert await host.output("c1") == b"turn\n" * 3
        assert (await listed(host, "c1"))["status"] == "exited"
        starts = [it.payload["started_ns"] for it in host.events if "started" in it.name]
        assert starts == sorted(starts)

    drive(tmp_path, scenario)


def test_kill_that_is_final_ends_the_policy_of_one_that_runs(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sleep", "1000", restart=ALWAYS)
        params = {"id": "c1", "signal": 9, "final": True, "by_user": True}
        assert await host.link.call("container.kill", params) == {"unpaused": False}
        exit = await host.event("container.exit", id="c1")
        assert (exit["restarting"], exit["exit_code"]) == (False, 137)

    drive(tmp_path, scenario)


def test_kill_that_is_not_final_is_followed_by_a_restart(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sleep", "1000", restart=ALWAYS)
        await host.link.call("container.kill", {"id": "c1", "signal": 9, "by_user": True})
        assert (await host.event("container.exit", id="c1"))["restarting"]
        await host.event("container.started", id="c1")
        await host.link.call("container.kill", {"id": "c1", "signal": 9, "final": True})
        await host.event("container.exit", id="c1", restarting=False)

    drive(tmp_path, scenario)


def test_final_kill_of_one_that_waits_is_its_end_and_told_so(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "false", restart=ALWAYS)
        await host.event("container.exit", id="c1", restart_count=4)
        assert (await listed(host, "c1"))["status"] == "restarting"  # for 0.8 s
        with pytest.raises(AgentError, match="is running"):
            await host.link.call("container.remove", {"id": "c1"})
        await host.link.call("container.kill", {"id": "c1", "signal": 15, "final": True})
        last = await host.event("container.exit", id="c1", restarting=False)
        assert last["exit_code"] == 1
        assert (await listed(host, "c1"))["status"] == "exited"
        await host.link.call("container.remove", {"id": "c1"})

    drive(tmp_path, scenario)


def test_restart_that_cannot_start_is_its_end_with_the_reason(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        program = tmp_path / "program"
        program.write_text("#!/bin/sh\nrm $0\n")
        program.chmod(0o755)
        await host.start("c1", str(program), restart=ALWAYS)
        last = await host.event("container.exit", id="c1", restarting=False)
        assert last["exit_code"] == 127
        assert str(program) in last["error"]

    drive(tmp_path, scenario)


def test_policy_is_changed_while_it_runs(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sleep", "1000")
        await update(host, "c1", restart=ALWAYS)
        await host.link.call("container.kill", {"id": "c1", "signal": 9})
        await host.event("container.started", id="c1")  # with the new command: true
        await update(host, "c1", restart=None)
        last = await host.event("container.exit", id="c1", restarting=False)
        assert last["exit_code"] == 0

    drive(tmp_path, scenario)


def test_update_of_a_start_for_another_container_is_invalid(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sleep", "1000")
        start = {"id": "c2", "spec": {}, "layers": []}
        with pytest.raises(AgentError, match="c2's"):
            await host.link.call("container.update", {"id": "c1", "start": start})

    drive(tmp_path, scenario)


def test_shutdown_ends_what_waits_to_be_started_again(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "false", restart=ALWAYS)
        await host.event("container.exit", id="c1", restart_count=5)  # 1.6 s until the next
        await host.link.call("system.shutdown", {"timeout": 0})
        last = await host.event("container.exit", id="c1", restarting=False)
        assert last["exit_code"] == 1

    drive(tmp_path, scenario)


def health(*args: str, **check: Any) -> dict[str, Any]:
    return {"process": {"args": list(args)}, "interval_ns": 50_000_000, **check}


def test_health_is_told_when_it_changes_and_asked_for_in_between(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        flag = tmp_path / "flag"
        check = health("sh", "-c", f"echo looked; test -e {flag}", retries=2)
        await host.start("c1", "sleep", "1000", health=check)
        bad = await host.event("container.health", id="c1", status="unhealthy")
        assert bad["failing_streak"] == 2
        assert [result["output"] for result in bad["log"]] == ["looked\n"] * 2
        flag.touch()
        good = await host.event("container.health", id="c1", status="healthy")
        assert good["changes"] == 2
        answer = await host.link.call("container.health", {"id": "c1"})
        assert answer["health"]["status"] == "healthy"
        assert (await listed(host, "c1"))["health"]["status"] == "healthy"
        assert not [event for event in host.events if event.name.startswith("exec")]

    drive(tmp_path, scenario)


def test_probe_that_takes_too_long_is_killed_and_says_so(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        check = health("sh", "-c", "echo begun; exec sleep 1000", timeout_ns=200_000_000, retries=1)
        await host.start("c1", "sleep", "1000", health=check)
        bad = await host.event("container.health", id="c1", status="unhealthy")
        (result,) = bad["log"]
        assert result["exit_code"] == -1
        assert result["output"] == "Health check exceeded timeout (200ms): begun\n"

    drive(tmp_path, scenario)


def test_probe_that_cannot_run_fails_and_its_output_is_cut(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sleep", "1000", health=health("/no/such", retries=1))
        bad = await host.event("container.health", id="c1")
        assert bad["log"][0]["exit_code"] == -1
        assert "/no/such" in bad["log"][0]["output"]
        big = health("sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x")
        await host.start("c2", "sleep", "1000", health=big)
        good = await host.event("container.health", id="c2")
        assert good["log"][0]["output"] == "x" * 4096 + "..."

    drive(tmp_path, scenario)


def test_health_goes_with_the_exit(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "sh", "-c", "read x", open_stdin=True, health=health("true"))
        await host.event("container.health", id="c1", status="healthy")
        await host.link.call("container.kill", {"id": "c1", "signal": 9})
        assert (await host.event("container.exit", id="c1"))["health"]["status"] == "healthy"

    drive(tmp_path, scenario)


NONE = {"driver": "none"}


def test_without_a_log_the_reader_who_is_on_his_way_misses_nothing(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "echo", "hello", log=NONE, reader_expected=True)
        stream, _ = await host.attach("c1")
        assert output_of(split_frames(await read_all(stream)), STDOUT) == b"hello\n"
        exit = await host.event("container.exit", id="c1")
        assert exit["log_lost"] == 0
        assert list(host.paths.container("c1").log.iterdir()) == []
        assert await host.output("c1") == b""

    drive(tmp_path, scenario)


def test_without_a_log_and_a_reader_output_is_thrown_away(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.start("c1", "head", "-c", "5000000", "/dev/zero", log=NONE)
        assert (await host.event("container.exit", id="c1"))["exit_code"] == 0

    drive(tmp_path, scenario)


def test_without_a_log_the_reader_sets_the_pace(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        total = 20_000_000
        await host.start(
            "c1", "head", "-c", str(total), "/dev/zero", log=NONE, reader_expected=True
        )
        stream, _ = await host.attach("c1")
        first = await stream.read()
        # All the buffers on the way hold less than a fifth of it: it cannot have ended.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await host.event("container.exit", id="c1")
        data = first + await read_all(stream)
        assert len(output_of(split_frames(data), STDOUT)) == total
        assert (await host.event("container.exit", id="c1"))["exit_code"] == 0

    drive(tmp_path, scenario)


def test_log_is_rotated_and_read_from_where_it_begins(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        log = {"driver": "file", "max_size": 40_000, "max_files": 2}
        script = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); head -c 5000 /dev/zero; sleep 0.01; done"
        await host.start("c1", "sh", "-c", script, log=log)
        exit = await host.event("container.exit", id="c1")
        stream, answer = await host.attach("c1")
        data = await read_all(stream)
        assert answer["offset"] > 0
        assert answer["offset"] + len(data) == exit["log_bytes"]
        split_frames(data)
        assert len(list(host.paths.container("c1").log.glob("log*"))) == 2
        assert (await listed(host, "c1"))["log_bytes"] == exit["log_bytes"]
        stream, answer = await host.attach("c1", **{"from": exit["log_bytes"] - len(data)})
        assert await read_all(stream) == data

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"log": {"driver": "syslog"}}, "log.driver"),
        ({"log": {"driver": "file", "max_size": -1}}, "max_size"),
        ({"restart": {"name": "maybe"}}, "restart.name"),
        ({"health": {}}, "process"),
    ],
)
def test_wrong_policy_is_refused_before_anything_happens(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    async def scenario(host: Host) -> None:
        with pytest.raises(AgentError, match=message):
            await host.start("c1", "true", **values)
        assert (await host.link.call("container.list", {}))["containers"] == []

    drive(tmp_path, scenario)


def test_full_disk_does_not_keep_an_exit_from_being_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logfile.LogFile, "_splice", full)
    monkeypatch.setattr(container_module, "EXIT_PATIENCE", 0.2)

    async def scenario(host: Host) -> None:
        await host.start("c1", "echo", "last words")
        exit = await host.event("container.exit", id="c1")
        assert exit["log_lost"] == len("last words\n")
        assert exit["exit_code"] == 0

    drive(tmp_path, scenario)


def test_nothing_is_held_of_a_container_that_was_removed(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        for number in range(5):
            id = f"c{number}"
            await host.start(id, "sh", "-c", "echo out; exit 3")
            await host.event("container.exit", id=id)
            await host.link.call("container.remove", {"id": id})

        def let_go() -> bool:
            gc.collect()
            every = (it for it in gc.get_objects() if isinstance(it, container_module.Container))
            return not any(it.paths.run.is_relative_to(tmp_path) for it in every)

        eventually("nothing holds the containers", let_go, seconds=5)

    drive(tmp_path, scenario)
