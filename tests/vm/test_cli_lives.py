"""Restarts, health, pausing, limits, logs and figures, end to end: engine, VM, containers."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Wherry
from waiting import eventually

pytestmark = pytest.mark.vm

BUSYBOX = "localhost/busybox"


@pytest.fixture
def name(wherry: Wherry) -> Iterator[str]:
    """A name for one container, which is gone at the end."""
    it = f"life-{uuid.uuid4().hex[:8]}"
    yield it
    wherry.run("rm", "--force", it)


def inspect(wherry: Wherry, name: str) -> Any:
    return json.loads(wherry.out("inspect", name))[0]


def state(wherry: Wherry, name: str) -> Any:
    return inspect(wherry, name)["State"]


def actions(wherry: Wherry, name: str, *more: str) -> list[str]:
    """The actions of a container's events so far, oldest first."""
    form = more or ("--format", "{{.Action}}")
    text = wherry.out(
        "events", "--since", "1h", "--until", "0s", "--filter", f"container={name}", *form
    )
    return text.splitlines()


def test_restart_loop_is_visible_and_ends_with_stop(wherry: Wherry, name: str) -> None:
    wherry.out("run", "-d", "--name", name, "--restart", "always", BUSYBOX, "sh", "-c", "exit 3")
    eventually("three restarts", lambda: inspect(wherry, name)["RestartCount"] >= 3)
    waiting: list[Any] = []

    def waits() -> bool:
        it = state(wherry, name)
        waiting.append(it)
        return bool(it["Status"] == "restarting")

    eventually("it waits", waits)
    it = waiting[-1]
    assert (it["Running"], it["Restarting"], it["ExitCode"]) == (True, True, 3)
    listed = wherry.out("ps", "--filter", f"name={name}", "--format", "{{.Status}}")
    assert listed.startswith("Restarting (3) ")
    assert b"is restarting" in wherry.run("exec", name, "true").stderr
    wherry.out("stop", "-t", "1", name)
    it = inspect(wherry, name)
    assert it["State"]["Status"] == "exited"
    seen = actions(wherry, name)
    assert seen.count("die") == seen.count("start")
    assert seen[-1] == "stop"


def test_on_failure_counts_to_its_maximum(wherry: Wherry, name: str) -> None:
    wherry.out("run", "-d", "--name", name, "--restart=on-failure:2", BUSYBOX, "false")
    eventually("it gives up", lambda: state(wherry, name)["Status"] == "exited")
    assert inspect(wherry, name)["RestartCount"] == 2
    assert actions(wherry, name).count("die") == 3


def test_restart_with_rm_is_refused(wherry: Wherry) -> None:
    done = wherry.run("run", "--rm", "--restart", "always", BUSYBOX, "true")
    assert done.returncode == 125
    assert b"cannot specify both --restart and --rm" in done.stderr


def test_killed_engine_misses_no_restart_and_no_change_of_health(wherry: Wherry, name: str) -> None:
    # A second probe of a kind begins when the first one's result is known.
    check = (
        "if test -e /ok; then test -e /good && touch /good2; touch /good; "
        "else test -e /bad && touch /bad2; touch /bad; exit 1; fi"
    )
    script = (
        "rm -f /good* /bad*; touch /ok; while ! test -e /good2; do sleep 0.05; done; "
        "rm /ok; while ! test -e /bad2; do sleep 0.05; done; exit 1"
    )
    wherry.out(
        "run", "-d", "--name", name, "--restart", "always", "--health-cmd", check,
        "--health-interval", "100ms", "--health-retries", "1", BUSYBOX, "sh", "-c", script,
    )  # fmt: skip
    eventually("a first restart", lambda: inspect(wherry, name)["RestartCount"] >= 1)
    wherry.kill_engine()
    # Nobody listens while it dies and comes back: the agent goes on by itself.
    subprocess.run(["sleep", "6"], check=True)
    count = inspect(wherry, name)["RestartCount"]
    assert count >= 2
    wherry.out("stop", "-t", "0", name)
    seen = actions(wherry, name)
    lives = [it for it in seen if it in ("start", "die")]
    assert lives == ["start", "die"] * (len(lives) // 2)
    assert len(lives) // 2 >= count
    turns = " ".join(it for it in seen if it != "kill").split("die")
    for turn in turns[:count]:  # the one that was stopped may have been in its middle
        assert "health_status: healthy" in turn, seen
        assert "health_status: unhealthy" in turn, seen


def test_health_is_seen_in_inspect_ps_and_events(wherry: Wherry, name: str) -> None:
    wherry.out(
        "run", "-d", "--name", name, "--health-cmd", "echo looked; test -e /ok",
        "--health-interval", "200ms", "--health-retries", "2", BUSYBOX, "sleep", "1000",
    )  # fmt: skip
    eventually("unhealthy", lambda: state(wherry, name)["Health"]["Status"] == "unhealthy")
    health = state(wherry, name)["Health"]
    assert health["Log"][-1]["Output"] == "looked\n"
    assert health["Log"][-1]["ExitCode"] == 1
    assert len(health["Log"]) <= 5
    wherry.out("exec", name, "touch", "/ok")

    def healthy() -> bool:
        return name in wherry.out("ps", "--filter", "health=healthy", "--format", "{{.Names}}")

    eventually("healthy", healthy)
    shown = wherry.out("ps", "--filter", f"name={name}", "--format", "{{.Status}}")
    assert shown.endswith("(healthy)")
    changes = [it for it in actions(wherry, name) if it.startswith("health_status")]
    assert changes[-2:] == ["health_status: unhealthy", "health_status: healthy"]


def test_pause_holds_a_container_and_unpause_lets_it_go(wherry: Wherry, name: str) -> None:
    script = "while :; do date +%s%N; sleep 0.05; done"
    wherry.out("run", "-d", "--name", name, BUSYBOX, "sh", "-c", script)
    wherry.out("pause", name)
    assert state(wherry, name)["Status"] == "paused"
    lines = wherry.out("logs", name)
    assert b"is paused" in wherry.run("exec", name, "true").stderr
    assert wherry.out("ps", "--filter", "status=paused", "-q", "--no-trunc")
    assert wherry.out("logs", name) == lines
    wherry.out("unpause", name)
    wherry.out("exec", name, "true")
    eventually("it goes on", lambda: len(wherry.out("logs", name)) > len(lines))
    wherry.out("pause", name)
    wherry.out("stop", "-t", "1", name)
    assert state(wherry, name)["Status"] == "exited"
    assert [it for it in actions(wherry, name) if "pause" in it] == ["pause", "unpause"] * 2


def test_update_changes_a_running_containers_limits(wherry: Wherry, name: str) -> None:
    script = "trap 'exit 1' USR1; while :; do sleep 0.1; done"
    wherry.out("run", "-d", "--name", name, "-m", "64m", BUSYBOX, "sh", "-c", script)
    wherry.out(
        "update", "-m", "32m", "--memory-reservation", "16m", "--cpus", "0.5", "--pids-limit", "50",
        "-c", "512", "--cpuset-cpus", "0", name,
    )  # fmt: skip
    files = "memory.max memory.low cpu.max pids.max cpuset.cpus"
    shown = wherry.out("exec", name, "sh", "-c", f"cd /sys/fs/cgroup; cat {files}")
    assert shown.splitlines() == ["33554432", "16777216", "50000 100000", "50", "0"]
    assert inspect(wherry, name)["HostConfig"]["Memory"] == 32 << 20
    bad = wherry.run("update", "--cpuset-cpus", "64", name)
    assert bad.returncode != 0
    assert b"cpuset" in bad.stderr
    assert inspect(wherry, name)["HostConfig"]["CpusetCpus"] == "0"
    wherry.out("update", "--restart", "always", name)
    wherry.out("exec", name, "kill", "-USR1", "1")
    eventually("its policy", lambda: inspect(wherry, name)["RestartCount"] == 1)
    eventually("it runs", lambda: state(wherry, name)["Status"] == "running")
    assert wherry.out("exec", name, "cat", "/sys/fs/cgroup/memory.max") == "33554432"


def test_oom_kill_is_an_event_once_and_stays_visible(wherry: Wherry, name: str) -> None:
    script = "head -c 100m /dev/zero | tail"
    done = wherry.run(
        "run", "--name", name, "-m", "16m", "--memory-swap", "16m", BUSYBOX, "sh", "-c", script
    )
    assert done.returncode != 0
    assert state(wherry, name)["OOMKilled"]
    assert actions(wherry, name).count("oom") == 1


def test_stats_and_top_show_what_runs(wherry: Wherry, name: str) -> None:
    wherry.out("run", "-d", "--name", name, "-m", "64m", BUSYBOX, "sh", "-c", "while :; do :; done")
    text = wherry.out("stats", "--no-stream", "--format", "{{.CPUPerc}} {{.MemUsage}}", name)
    percent, usage = text.split(" ", 1)
    assert 30 < float(percent.rstrip("%")) < 130
    assert usage.endswith("/ 64MiB")
    top = wherry.out("top", name)
    assert top.splitlines()[0].split() == [
        "UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD",
    ]  # fmt: skip
    assert "while :" in top
    assert wherry.out("top", name, "-o", "pid,comm").splitlines()[1].split()[1] == "sh"
    wherry.out("kill", name)
    assert wherry.run("top", name).returncode != 0
    shown = wherry.out("stats", "--no-stream", "--format", "{{.CPUPerc}}", name)
    assert shown == "--"


def test_log_is_rotated(wherry: Wherry, name: str) -> None:
    script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; sleep 0.002; done"
    wherry.out(
        "run", "--name", name, "--log-opt", "max-size=2k", "--log-opt", "max-file=2", BUSYBOX,
        "sh", "-c", script,
    )  # fmt: skip
    lines = wherry.out("logs", name).splitlines()
    assert lines[-1] == "line 300"
    assert lines[0] != "line 1"
    numbers = [int(it.split()[1]) for it in lines]
    assert numbers == list(range(numbers[0], 301))
    assert wherry.out("logs", "--tail", "2", name).splitlines() == ["line 299", "line 300"]


def test_log_driver_none_keeps_nothing_and_attach_gets_all(wherry: Wherry, name: str) -> None:
    done = wherry.run(
        "run", "--name", name, "--log-driver", "none", BUSYBOX, "head", "-c", "3000000", "/dev/zero"
    )
    assert len(done.stdout) == 3_000_000
    refused = wherry.run("logs", name)
    assert refused.returncode != 0
    assert b"configured logging driver does not support reading" in refused.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--log-driver", "nope"], b"no log driver named 'nope'"),
        (["--log-opt", "nope=1"], b"unknown log opt 'nope'"),
        (["--log-opt", "compress=true"], b"compress"),
        (["--restart", "sometimes"], b"unknown policy"),
        (["--health-interval", "1us", "--health-cmd", "x"], b"cannot be less than 1ms"),
    ],
)
def test_wrong_policies_are_refused(wherry: Wherry, flags: list[str], message: bytes) -> None:
    done = wherry.run("create", *flags, BUSYBOX, "true")
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.timeout(300)
def test_full_data_disk_delays_an_exit_by_seconds_and_says_what_is_lost(
    wherry: Wherry, name: str
) -> None:
    filler = f"{name}-filler"
    try:
        wherry.out("run", "-d", "--name", filler, BUSYBOX, "sleep", "1000")
        wherry.out("run", "-d", "-i", "--name", name, BUSYBOX, "sh", "-c", "read x; echo last")
        free = "$(df -k / | awk 'END {print $4}')"
        script = f"fallocate -l $(({free} * 1024)) /fill; cat /dev/zero > /rest; df -k / >&2"
        wherry.run("exec", filler, "sh", "-c", script, timeout=120)
        attached = wherry.popen("attach", name)
        attached.communicate(b"go\n", timeout=60)
        assert wherry.out("wait", name) == "0"
    finally:
        wherry.run("rm", "--force", filler)
    lost = actions(wherry, name, "--format", "{{json .}}")
    dies = [it["Actor"]["Attributes"] for it in map(json.loads, lost) if it["Action"] == "die"]
    assert [it.get("logLostBytes") for it in dies] == ["5"]
    eventually("the disk has room again", lambda: not wherry.run("run", "--rm", BUSYBOX).returncode)
