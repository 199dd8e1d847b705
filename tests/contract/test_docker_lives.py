"""What goes on while a container runs, with Docker's own command line and docker-py."""

from __future__ import annotations

import gc
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import docker
import docker.errors
import pytest
from harness import Wherry
from needs import require
from waiting import eventually

pytestmark = [
    pytest.mark.contract,
    pytest.mark.vm,
    # docker-py leaves the sockets of streams to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

BUSYBOX = "localhost/busybox"


@pytest.fixture(scope="module", autouse=True)
def docker_program() -> str:
    return require("docker.io", "docker")


@pytest.fixture
def name(wherry: Wherry) -> Iterator[str]:
    wherry.run("machine", "start", check=True, timeout=120)
    it = f"life-{uuid.uuid4().hex[:8]}"
    yield it
    wherry.docker("rm", "-f", it)


@pytest.fixture
def py(wherry: Wherry) -> Iterator[docker.DockerClient]:
    wherry.run("machine", "start", check=True, timeout=120)
    client = docker.DockerClient(base_url=wherry.environment["DOCKER_HOST"])
    yield client
    client.close()
    gc.collect()


@pytest.fixture
def box(py: docker.DockerClient, name: str) -> Any:
    return py.containers.run(BUSYBOX, ["sleep", "1000"], name=name, detach=True)


def out(wherry: Wherry, *args: str) -> str:
    return wherry.docker(*args, check=True).stdout.decode().strip()


def test_docker_restart_policy(wherry: Wherry, name: str) -> None:
    out(wherry, "run", "-d", "--name", name, "--restart", "on-failure:2", BUSYBOX, "false")
    form = "{{.RestartCount}} {{.State.Status}} {{.HostConfig.RestartPolicy.Name}}"
    eventually(
        "it gives up",
        lambda: out(wherry, "inspect", "-f", form, name) == "2 exited on-failure",
    )
    out(wherry, "update", "--restart", "always", name)
    out(wherry, "start", name)
    eventually("it restarts", lambda: int(out(wherry, "inspect", "-f", form, name).split()[0]) > 1)
    out(wherry, "stop", "-t", "0", name)
    assert out(wherry, "inspect", "-f", "{{.State.Status}}", name) == "exited"
    done = wherry.docker("run", "--rm", "--restart", "always", BUSYBOX, "true")
    assert done.returncode == 125


def test_docker_health_check(wherry: Wherry, name: str) -> None:
    out(
        wherry, "run", "-d", "--name", name, "--health-cmd", "echo hi", "--health-interval", "1s",
        "--health-start-period", "10s", "--health-start-interval", "100ms", BUSYBOX, "sleep", "99",
    )  # fmt: skip
    form = "{{.State.Health.Status}}"
    eventually("healthy", lambda: out(wherry, "inspect", "-f", form, name) == "healthy")
    assert "(healthy)" in out(wherry, "ps", "--filter", f"name={name}")
    assert name in out(wherry, "ps", "--filter", "health=healthy", "--format", "{{.Names}}")
    log = json.loads(out(wherry, "inspect", "-f", "{{json .State.Health.Log}}", name))
    assert (log[0]["ExitCode"], log[0]["Output"]) == (0, "hi\n")


def test_docker_no_healthcheck(wherry: Wherry, name: str) -> None:
    out(wherry, "run", "-d", "--name", name, "--no-healthcheck", BUSYBOX, "sleep", "99")
    assert out(wherry, "inspect", "-f", "{{json .Config.Healthcheck.Test}}", name) == '["NONE"]'


def test_docker_pause_and_unpause(wherry: Wherry, name: str) -> None:
    out(wherry, "run", "-d", "--name", name, BUSYBOX, "sleep", "1000")
    out(wherry, "pause", name)
    assert "(Paused)" in out(wherry, "ps", "--filter", f"name={name}")
    refused = wherry.docker("exec", name, "true")
    assert refused.returncode == 1
    assert b"is paused" in refused.stderr
    out(wherry, "unpause", name)
    out(wherry, "exec", name, "true")
    assert b"is not paused" in wherry.docker("unpause", name).stderr


def test_docker_update(wherry: Wherry, name: str) -> None:
    out(wherry, "run", "-d", "--name", name, BUSYBOX, "sleep", "1000")
    out(wherry, "update", "-m", "64m", "--memory-swap", "-1", "--cpus", "1.5", name)
    shown = out(wherry, "exec", name, "cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max")
    assert shown.splitlines() == ["67108864", "150000 100000"]
    refused = wherry.docker("update", "--cpu-quota", "5000", name)
    assert b"NanoCPUs has already been set" in refused.stderr


def test_docker_stats_and_top(wherry: Wherry, name: str) -> None:
    out(wherry, "run", "-d", "--name", name, "-m", "64m", BUSYBOX, "sleep", "1000")
    text = out(wherry, "stats", "--no-stream", "--format", "{{json .}}", name)
    row = json.loads(text)
    assert row["Name"] == name
    assert row["MemUsage"].endswith("/ 64MiB")
    assert row["PIDs"] == "1"
    assert row["CPUPerc"].endswith("%")
    lines = out(wherry, "top", name).splitlines()
    assert lines[0].split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert lines[1].endswith("sleep 1000")
    assert out(wherry, "top", name, "-o", "pid,args").splitlines()[1].endswith("sleep 1000")


def test_docker_log_drivers(wherry: Wherry, name: str) -> None:
    out(wherry, "run", "--name", name, "--log-driver", "none", BUSYBOX, "echo", "hi")
    refused = wherry.docker("logs", name)
    assert b"configured logging driver does not support reading" in refused.stderr
    bad = wherry.docker("run", "--log-opt", "nope=1", BUSYBOX, "true")
    assert b"unknown log opt 'nope'" in bad.stderr
    shown = wherry.docker("run", "--rm", "--log-driver", "local", BUSYBOX, "echo", "hi", check=True)
    assert shown.stdout == b"hi\n"


def test_docker_events(wherry: Wherry, name: str) -> None:
    out(wherry, "run", "--rm", "--name", name, BUSYBOX, "true")
    until = str(int(time.time()) + 1)  # Docker's client sends whole seconds
    text = out(
        wherry, "events", "--since", "1h", "--until", until, "--filter", f"container={name}",
        "--format", "{{.Action}}",
    )  # fmt: skip
    actions = [it for it in text.splitlines() if it != "attach"]
    assert actions == ["create", "start", "die", "destroy"]


def test_docker_py_pauses(box: Any) -> None:
    box.pause()
    box.reload()
    assert box.status == "paused"
    assert box.attrs["State"]["Paused"]
    with pytest.raises(docker.errors.APIError) as caught:
        box.exec_run("true")
    assert caught.value.status_code == 409
    with pytest.raises(docker.errors.APIError):
        box.pause()
    box.unpause()
    box.reload()
    assert box.status == "running"
    box.pause()
    box.stop(timeout=0)
    box.reload()
    assert box.status == "exited"


def test_docker_py_updates(box: Any) -> None:
    box.update(mem_limit="64m", memswap_limit="128m", restart_policy={"Name": "always"})
    box.reload()
    assert box.attrs["HostConfig"]["Memory"] == 64 << 20
    assert box.attrs["HostConfig"]["RestartPolicy"]["Name"] == "always"
    box.update(blkio_weight=500)
    box.reload()
    assert box.attrs["HostConfig"]["BlkioWeight"] == 500
    with pytest.raises(docker.errors.APIError, match="KernelMemory"):
        box.update(kernel_memory="32m")


def test_docker_py_reads_stats(box: Any) -> None:
    once = box.stats(stream=False)
    assert once["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert once["precpu_stats"]["system_cpu_usage"] < once["cpu_stats"]["system_cpu_usage"]
    stream = box.stats(decode=True, stream=True)
    first, second = next(stream), next(stream)
    stream.close()
    assert first["read"] == second["preread"]
    assert second["memory_stats"]["usage"] > 0
    assert second["pids_stats"]["current"] == 1


def test_docker_py_reads_top(box: Any) -> None:
    answer = box.top(ps_args="aux")
    assert answer["Titles"][0] == "USER"
    assert answer["Processes"][0][-1] == "sleep 1000"
    with pytest.raises(docker.errors.APIError):
        box.top(ps_args="--nonsense")
    box.kill()
    with pytest.raises(docker.errors.APIError) as caught:
        box.top()
    assert caught.value.status_code == 409


def test_docker_py_health_and_events(py: docker.DockerClient, name: str) -> None:
    source = py.events(decode=True, filters={"container": name, "event": "health_status"})
    check = {"test": ["CMD", "true"], "interval": 200_000_000}
    box = py.containers.run(BUSYBOX, ["sleep", "99"], name=name, detach=True, healthcheck=check)
    assert next(iter(source))["Action"] == "health_status: healthy"
    source.close()
    box.reload()
    assert box.health == "healthy"
    assert [it.name for it in py.containers.list(filters={"health": "healthy", "name": name})] == [
        name
    ]


def test_docker_py_restart_policy_and_log_config(py: docker.DockerClient, name: str) -> None:
    box = py.containers.run(
        BUSYBOX,
        ["sh", "-c", "exit 5"],
        name=name,
        detach=True,
        restart_policy={"Name": "always"},
        log_config=docker.types.LogConfig(type="json-file", config={"max-size": "1m"}),
    )

    def restarted() -> bool:
        box.reload()
        return int(box.attrs["RestartCount"]) >= 2

    eventually("two restarts", restarted)
    assert box.attrs["HostConfig"]["LogConfig"]["Config"] == {"max-size": "1m"}
    box.stop(timeout=0)
    box.reload()
    assert box.status == "exited"
    assert not box.attrs["State"]["Restarting"]
    for log_config in ({"type": "nope"}, {"type": "json-file", "config": {"nope": "1"}}):
        with pytest.raises(docker.errors.APIError) as caught:
            py.containers.create(BUSYBOX, "true", log_config=docker.types.LogConfig(**log_config))
        assert caught.value.status_code == 400
