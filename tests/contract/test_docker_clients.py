"""Docker's own command line and docker-py on our socket."""

from __future__ import annotations

import gc
import json
import uuid
from collections.abc import Iterator

import docker
import docker.errors
import pytest
from harness import Terminal, Wherry
from needs import require
from waiting import eventually

pytestmark = [
    pytest.mark.contract,
    pytest.mark.vm,
    # docker-py leaves the sockets of hijacked connections to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

BUSYBOX = "localhost/busybox"


@pytest.fixture(scope="module", autouse=True)
def engine_and_docker(wherry: Wherry) -> None:
    """Docker's client, and an engine that it finds."""
    require("docker.io", "docker")
    wherry.run("machine", "start", check=True, timeout=120)


@pytest.fixture
def py(wherry: Wherry) -> Iterator[docker.DockerClient]:
    wherry.run("machine", "start", check=True, timeout=120)
    client = docker.DockerClient(base_url=wherry.environment["DOCKER_HOST"])
    yield client
    client.close()
    gc.collect()


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def out(done_stdout: bytes) -> str:
    return done_stdout.decode().strip()


def test_docker_version_and_info_know_us(wherry: Wherry) -> None:
    wherry.run("machine", "start", check=True, timeout=120)
    version = wherry.docker("version", "--format", "{{.Server.Os}}/{{.Server.Arch}}", check=True)
    assert out(version.stdout).startswith("linux/")
    info = wherry.docker("info", "--format", "{{json .}}", check=True)
    facts = json.loads(info.stdout)
    assert facts["OSType"] == "linux"
    assert facts["Swarm"]["LocalNodeState"] == "inactive"
    assert "ERROR" not in wherry.docker("info", check=True).stderr.decode()


def test_docker_run_keeps_streams_and_exit_code(wherry: Wherry) -> None:
    done = wherry.docker(
        "run", "--rm", "-i", BUSYBOX, "sh", "-c", "cat; echo err >&2; exit 9", input=b"in\n"
    )
    assert (done.stdout, done.stderr, done.returncode) == (b"in\n", b"err\n", 9)


@pytest.mark.parametrize(("command", "code"), [("/no/such", 127), ("/etc/passwd", 126)])
def test_docker_run_of_what_cannot_run(wherry: Wherry, command: str, code: int) -> None:
    done = wherry.docker("run", "--rm", BUSYBOX, command)
    assert done.returncode == code, done.stderr
    assert command.encode() in done.stderr


def test_docker_run_with_what_is_not_implemented_names_the_field(wherry: Wherry) -> None:
    for flags, field in (
        (["-v", "/tmp:/x"], b"HostConfig.Binds"),
        (["-p", "8080:80"], b"HostConfig.PortBindings"),
        (["--storage-opt", "size=1g"], b"HostConfig.StorageOpt"),
    ):
        done = wherry.docker("run", *flags, BUSYBOX, "true")
        assert done.returncode == 125
        assert field in done.stderr, done.stderr


def test_docker_manages_a_container(wherry: Wherry) -> None:
    name = unique("managed")
    wherry.docker("run", "-d", "--name", name, "-l", "k=v", BUSYBOX, "sleep", "1000", check=True)
    listed = wherry.docker("ps", "--filter", "label=k=v", "--format", "{{.Names}}", check=True)
    assert name in out(listed.stdout).split("\n")
    done = wherry.docker("exec", "-i", name, "cat", input=b"through exec", check=True)
    assert done.stdout == b"through exec"
    assert wherry.docker("exec", name, "sh", "-c", "exit 3").returncode == 3
    state = wherry.docker("inspect", "-f", "{{.State.Running}} {{.Config.Tty}}", name, check=True)
    assert out(state.stdout) == "true false"
    wherry.docker("kill", "-s", "KILL", name, check=True)
    assert out(wherry.docker("wait", name, check=True).stdout) == "137"
    wherry.docker("rm", name, check=True)
    assert wherry.docker("inspect", name).returncode == 1


def test_docker_logs(wherry: Wherry) -> None:
    name = unique("logs")
    script = "echo one; sleep 1; echo two"
    wherry.docker("run", "-d", "--name", name, BUSYBOX, "sh", "-c", script, check=True)
    assert wherry.docker("logs", "-f", name, check=True).stdout == b"one\ntwo\n"
    assert wherry.docker("logs", "--tail", "1", name, check=True).stdout == b"two\n"
    stamped = out(wherry.docker("logs", "-t", "--tail", "1", name, check=True).stdout)
    assert stamped.endswith("Z two")
    wherry.docker("rm", "-f", name, check=True)


def test_docker_run_on_a_terminal(wherry: Wherry) -> None:
    argv = ["docker", "run", "--rm", "-it", BUSYBOX, "sh"]
    with Terminal(argv, wherry.environment, rows=33, columns=99) as terminal:
        terminal.expect(b"# ")
        terminal.type(b"stty size\r")
        terminal.expect(b"33 99")
        terminal.resize(40, 120)

        def resized() -> bool:
            terminal.type(b"stty size; echo do''ne\r")
            terminal.expect(b"done")
            return b"40 120" in terminal.shown

        eventually("the new size arrives", resized)
        terminal.type(b"echo sl''eeps; sleep 1000\r")
        terminal.expect(b"sleeps")
        terminal.interrupt(b"# ")
        terminal.type(b"exit 6\r")
        assert terminal.wait() == 6


def test_docker_detaches_and_attaches_again(wherry: Wherry) -> None:
    name = unique("detach")
    argv = ["docker", "run", "-it", "--name", name, BUSYBOX, "sh"]
    with Terminal(argv, wherry.environment, rows=24, columns=80) as terminal:
        terminal.expect(b"# ")
        terminal.type(b"\x10\x11")
        assert terminal.wait() == 0
    argv = ["docker", "attach", name]
    with Terminal(argv, wherry.environment, rows=24, columns=80) as terminal:
        terminal.type(b"echo ag''ain; exit 4\r")
        terminal.expect(b"again")
        assert terminal.wait() == 4
    wherry.docker("rm", name, check=True)


def test_docker_exec_on_a_terminal(wherry: Wherry) -> None:
    name = unique("exec-tty")
    wherry.docker("run", "-d", "--name", name, BUSYBOX, "sleep", "1000", check=True)
    argv = ["docker", "exec", "-it", name, "sh"]
    with Terminal(argv, wherry.environment, rows=21, columns=77) as terminal:
        terminal.expect(b"# ")
        terminal.type(b"stty size; exit 2\r")
        terminal.expect(b"21 77")
        assert terminal.wait() == 2
    wherry.docker("rm", "-f", name, check=True)


def test_docker_lists_and_inspects_images(wherry: Wherry) -> None:
    listed = wherry.docker("images", "--format", "{{.Repository}}:{{.Tag}}", check=True)
    assert f"{BUSYBOX}:latest" in out(listed.stdout).split("\n")
    command = wherry.docker("image", "inspect", "-f", "{{json .Config.Cmd}}", BUSYBOX, check=True)
    assert json.loads(command.stdout) == ["sh"]


def test_docker_py_runs_containers(py: docker.DockerClient) -> None:
    assert py.ping()
    assert py.containers.run(BUSYBOX, ["echo", "hello"], remove=True) == b"hello\n"
    with pytest.raises(docker.errors.ContainerError):
        py.containers.run(BUSYBOX, ["sh", "-c", "exit 3"], remove=True)
    with pytest.raises(docker.errors.ImageNotFound):
        py.images.get("localhost/nothing")


def test_docker_py_execs_waits_and_reads_logs(py: docker.DockerClient) -> None:
    container = py.containers.run(
        BUSYBOX, ["sh", "-c", "echo started; sleep 1000"], detach=True, environment={"A": "b"}
    )
    try:
        code, output = container.exec_run(["sh", "-c", "echo $A; echo e >&2; exit 4"], demux=True)
        assert (code, output) == (4, (b"b\n", b"e\n"))
        eventually("it logs", lambda: container.logs() == b"started\n")
        container.stop(timeout=0)
        assert container.wait()["StatusCode"] == 137
        container.reload()
        assert container.status == "exited"
    finally:
        container.remove(force=True)


def test_docker_py_attaches_with_a_socket(py: docker.DockerClient) -> None:
    container = py.containers.create(BUSYBOX, ["cat"], stdin_open=True, tty=True)
    try:
        attached = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
        container.start()
        attached._sock.sendall(b"echo\n")
        answer = b""
        attached._sock.settimeout(20)
        while answer.count(b"echo") < 2:  # the terminal's echo, and cat's
            answer += attached._sock.recv(4096)
        attached.close()
    finally:
        container.remove(force=True)


def test_docker_py_sees_events(py: docker.DockerClient) -> None:
    name = unique("events")
    source = py.events(decode=True, filters={"container": name})
    py.containers.run(BUSYBOX, ["true"], name=name, remove=True)
    seen = []
    for event in source:
        seen.append(event["Action"])
        if event["Action"] == "destroy":
            break
    source.close()
    assert [action for action in seen if action in ("create", "start", "die", "destroy")] == [
        "create",
        "start",
        "die",
        "destroy",
    ]
