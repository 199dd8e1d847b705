"""Restarts, health, pausing and limits with the real PID 1, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from agent_machine import DEADLINE, AgentMachine, agent_machine
from containers_harness import SPEC, held_open
from waiting import PATIENCE

from wherry.errors import AgentError

pytestmark = pytest.mark.guest

Scenario = Callable[[AgentMachine], Coroutine[Any, Any, None]]
ALWAYS = {"name": "always"}


def drive(directory: Path, scenario: Scenario) -> None:
    async def main() -> None:
        async with asyncio.timeout(110 * PATIENCE), agent_machine(directory) as machine:
            await scenario(machine)

    asyncio.run(main())


def cgroup(machine: AgentMachine, id: str) -> Path:
    return Path(machine.setting.cgroups) / id


def health(*args: str, **check: Any) -> dict[str, Any]:
    return {
        "process": {**SPEC["process"], "args": list(args)},
        "interval_ns": 100_000_000,
        **check,
    }


async def listed(machine: AgentMachine, id: str) -> dict[str, Any]:
    containers = (await machine.link.call("container.list", {}))["containers"]
    return next(it for it in containers if it["id"] == id)


def start_params(id: str, **changes: Any) -> dict[str, Any]:
    return {"id": id, "spec": SPEC, "layers": ["busybox"], **changes}


def test_policy_starts_it_again_with_its_files_and_layers(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        script = "echo turn >> /turns; wc -l < /turns; exit 1"
        policy = {"name": "on-failure", "max": 3}
        await machine.start("c1", "sh", "-c", script, restart=policy)
        last = await machine.event("container.exit", id="c1", restarting=False)
        assert last["restart_count"] == 3
        stream, _ = await machine.attach("c1")
        log = b""
        while chunk := await stream.read():
            log += chunk
        assert [it for it in log.split(b"\n") if it[-1:].isdigit()][-1].endswith(b"4")
        await machine.link.call("container.remove", {"id": "c1"})
        assert not cgroup(machine, "c1").exists()

    drive(tmp_path, scenario)


def test_agent_killed_while_one_waits_starts_it_in_time(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await machine.start("c1", "false", restart=ALWAYS)
        await machine.event("container.exit", id="c1", restart_count=4)
        await machine.kill_agent()
        assert (await listed(machine, "c1"))["restart_count"] >= 4
        await machine.event("container.started", id="c1", restart_count=5)
        await machine.link.call("container.kill", {"id": "c1", "signal": 9, "final": True})
        await machine.event("container.exit", id="c1", restarting=False)

    drive(tmp_path, scenario)


def test_agent_killed_while_one_runs_restarts_it_after_its_exit(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await machine.start("c1", "sleep", "1000", restart=ALWAYS)
        await machine.kill_agent()
        await machine.link.call("container.kill", {"id": "c1", "signal": 9, "by_user": True})
        await machine.event("container.started", id="c1", restart_count=1)
        await machine.link.call("container.kill", {"id": "c1", "signal": 9, "final": True})
        await machine.event("container.exit", id="c1", restarting=False)

    drive(tmp_path, scenario)


def test_health_goes_on_after_the_agent_was_killed(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        check = health("sh", "-c", "echo $(id -u); test -e /ok", retries=1)
        await machine.start("c1", "sleep", "1000", health=check)
        bad = await machine.event("container.health", id="c1", status="unhealthy")
        assert bad["log"][0]["output"] == "0\n"
        await machine.kill_agent()
        assert (await listed(machine, "c1"))["health"]["status"] == "unhealthy"
        await machine.exec("c1", "e1", "touch", "/ok")
        good = await machine.event("container.health", id="c1", status="healthy")
        assert good["changes"] == 2

    drive(tmp_path, scenario)


def test_paused_container_stands_still_and_takes_no_exec(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        script = "while :; do echo tick; sleep 0.02; done"
        check = health("true")
        await machine.start("c1", "sh", "-c", script, health=check)
        await machine.event("container.health", id="c1", status="healthy")
        await machine.link.call("container.pause", {"id": "c1"})
        assert (cgroup(machine, "c1") / "cgroup.freeze").read_text() == "1\n"
        it = await listed(machine, "c1")
        assert it["status"] == "paused"
        with pytest.raises(AgentError, match="is paused"):
            await machine.exec("c1", "e1", "true")
        await machine.kill_agent()
        again = await listed(machine, "c1")
        assert again["status"] == "paused"
        assert again["log_bytes"] - it["log_bytes"] < 100, "it went on while it was paused"
        await machine.link.call("container.unpause", {"id": "c1"})
        await machine.exec("c1", "e2", "true")
        await machine.event("exec.exit", exec_id="e2")
        assert (await listed(machine, "c1"))["status"] == "running"

    drive(tmp_path, scenario)


async def until_caught(pid: int, number: int) -> None:
    """Wait until the process handles the signal: before, the first of a namespace is immune."""
    status = Path(f"/proc/{pid}/status")
    async with asyncio.timeout(DEADLINE):
        while True:
            caught = re.search(r"SigCgt:\s*([0-9a-f]+)", status.read_text())
            if caught is not None and int(caught[1], 16) >> (number - 1) & 1:
                return
            await asyncio.sleep(0.01)


def test_final_signal_lets_a_paused_container_go_on_to_its_end(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        script = "trap 'exit 3' TERM; while :; do sleep 0.02; done"
        started = await machine.start("c1", "sh", "-c", script)
        await until_caught(started["pid"], signal.SIGTERM)
        await machine.link.call("container.pause", {"id": "c1"})
        answer = await machine.link.call(
            "container.kill", {"id": "c1", "signal": 15, "final": True}
        )
        assert answer == {"unpaused": True}
        assert (await machine.event("container.exit", id="c1"))["exit_code"] == 3

    drive(tmp_path, scenario)


def test_limits_change_while_it_runs_all_or_none(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await machine.start("c1", "sleep", "1000")
        directory = cgroup(machine, "c1")
        if not (directory / "pids.max").exists():
            pytest.skip("no pids controller for tests here")
        params = {"id": "c1", "start": start_params("c1")}
        await machine.link.call(
            "container.update", {**params, "resources": {"pids": {"limit": 77}}}
        )
        assert (directory / "pids.max").read_text() == "77\n"
        bad = {"pids": {"limit": 55}, "unified": {"pids.nothing": "1"}}
        with pytest.raises(AgentError, match=r"pids\.nothing"):
            await machine.link.call("container.update", {**params, "resources": bad})
        assert (directory / "pids.max").read_text() == "77\n"
        with pytest.raises(AgentError, match="resources"):
            await machine.link.call(
                "container.update", {**params, "resources": {"network": {"classID": 1}}}
            )

    drive(tmp_path, scenario)


def test_figures_and_processes_are_the_containers(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        await machine.start("c1", "sh", "-c", "sleep 1000 & wait")
        await machine.start("c2", "sleep", "1000")
        params = {"ids": ["c1", "c2", "gone"], "pressure": True}
        answer = await machine.link.call("container.stats", params)
        assert [sample["id"] for sample in answer["samples"]] == ["c1", "c2"]
        assert "usage_usec" in answer["samples"][0]["files"]["cpu.stat"]
        async with asyncio.timeout(20 * PATIENCE):
            while True:
                found = (await machine.link.call("container.top", {"id": "c1"}))["processes"]
                if len(found) == 2:
                    break
        assert sorted(it["cmdline"].split("\0")[0] for it in found) == ["sh", "sleep"]

    drive(tmp_path, scenario)


def test_thirty_containers_leave_nothing_behind(tmp_path: Path) -> None:
    async def scenario(machine: AgentMachine) -> None:
        async def figures() -> dict[str, Any]:
            info = await machine.link.call("system.info", {"figures": True})
            it: dict[str, Any] = info["figures"]
            return {
                "cgroups": it["cgroups"],
                "mounts": it["mounts"],
                "agent": it["agent"]["descriptors"],
                "pid1": len(held_open(machine.process.pid)),
            }

        async def once(number: int) -> None:
            id = f"c{number}"
            check = health("true", interval_ns=10_000_000)
            policy = {"name": "on-failure", "max": 1}
            await machine.start(id, "sh", "-c", "exit 1", health=check, restart=policy)
            await machine.event("container.exit", id=id, restarting=False)
            await machine.link.call("container.remove", {"id": id})

        await once(0)
        before = await figures()
        for number in range(1, 31):
            await once(number)
        async with asyncio.timeout(20 * PATIENCE):
            while (after := await figures()) != before:
                await asyncio.sleep(0.05)
        assert after == before

    drive(tmp_path, scenario)
