"""`exec`, terminals and inherited descriptors, the same for us, crun and runc."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers_harness import read_until
from oci_harness import DEADLINE, Runtime, change

pytestmark = pytest.mark.guest


@pytest.fixture
def running(runtime: Runtime) -> str:
    return runtime.start(runtime.spec("sleep", "100"))


# exec


@pytest.mark.parametrize("code", [0, 7, 255])
def test_exec_ends_with_the_commands_exit_code(runtime: Runtime, running: str, code: int) -> None:
    assert runtime("exec", running, "sh", "-c", f"exit {code}").returncode == code


def test_exec_is_in_the_containers_namespaces_and_cgroup(runtime: Runtime, running: str) -> None:
    kinds = ("mnt", "uts", "ipc", "net", "pid", "cgroup")
    script = "; ".join(f"readlink /proc/self/ns/{kind}" for kind in kinds)
    pid = runtime.pid(running)
    wanted = [str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in kinds]
    assert runtime.ok("exec", running, "sh", "-c", script).splitlines() == wanted
    assert runtime.ok("exec", running, "grep", "^0::", "/proc/self/cgroup") == "0::/\n"


def test_exec_takes_flags(runtime: Runtime, running: str) -> None:
    flags = ["--cwd", "/etc", "--env", "A=b", "--user", "1000:1000"]
    script = "pwd; echo $A; /bin/id -u; /bin/id -g"  # crun's --env replaces the environment
    out = runtime.ok("exec", *flags, running, "/bin/sh", "-c", script)
    assert out.split() == ["/etc", "b", "1000", "1000"]


def test_exec_takes_a_process_file(runtime: Runtime, running: str, tmp_path: Path) -> None:
    process = {
        "args": ["sh", "-c", "pwd; id -u; id -G; umask; grep NoNewPrivs /proc/self/status"],
        "env": ["PATH=/bin"],
        "cwd": "/tmp",
        "user": {"uid": 5, "gid": 6, "additionalGids": [7], "umask": 0o27},
        "noNewPrivileges": True,
    }
    (tmp_path / "process.json").write_text(json.dumps(process))
    out = runtime.ok("exec", "--process", f"{tmp_path}/process.json", running)
    lines = out.splitlines()
    assert lines[:2] == ["/tmp", "5"]
    assert set(lines[2].split()) == {"6", "7"}
    assert lines[3] == "0027" or runtime.name == "runc"  # which overlooks it
    assert lines[4] == "NoNewPrivs:\t1"


def test_exec_has_stdio(runtime: Runtime, running: str) -> None:
    result = runtime("exec", running, "sh", "-c", "cat; echo err >&2", input="in\n")
    assert (result.stdout, result.stderr) == ("in\n", "err\n")


def test_exec_detached_writes_its_pid(runtime: Runtime, running: str, tmp_path: Path) -> None:
    flags = ["--detach", "--pid-file", f"{tmp_path}/pid"]
    runtime.detached("exec", *flags, running, "sleep", "99")
    pid = int((tmp_path / "pid").read_text())
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x0099\x00"


@pytest.mark.parametrize("command", ["nope", "/nope", "/etc", "/etc/passwd"])
def test_exec_of_what_cannot_be_run_is_255(runtime: Runtime, running: str, command: str) -> None:
    assert runtime("exec", running, command).returncode == 255
    assert runtime.state(running)["status"] == "running"


def test_exec_into_a_created_container(runtime: Runtime) -> None:
    id = runtime.create(runtime.spec("sleep", "100"))
    if runtime.name == "crun":
        pytest.skip("crun refuses")
    assert runtime.ok("exec", id, "echo", "hi") == "hi\n"


# Terminals.


class ConsoleSocket:
    """Listens as an engine does, and takes a terminal's master."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._listener.settimeout(DEADLINE)

    def master(self) -> int:
        connection, _ = self._listener.accept()
        with connection:
            name, fds, _, _ = socket.recv_fds(connection, 4096, 1)
        assert name
        return fds[0]

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def console(tmp_path: Path) -> Iterator[ConsoleSocket]:
    it = ConsoleSocket(tmp_path / "console")
    yield it
    it.close()


def test_a_terminal_goes_to_the_console_socket(runtime: Runtime, console: ConsoleSocket) -> None:
    script = "tty; stty size; test -c /dev/console && echo console; read line; echo got $line"
    spec = runtime.spec("sh", "-c", script, terminal=True)
    spec["process"]["consoleSize"] = {"height": 33, "width": 111}
    id = runtime.create(spec, "--console-socket", console.path)
    master = console.master()
    runtime.ok("start", id)
    read_until(master, "/dev/pts/0\r\n33 111\r\nconsole\r\n")
    os.write(master, b"word\n")
    read_until(master, "got word\r\n")
    os.close(master)


def test_an_exec_has_a_terminal_too(runtime: Runtime, console: ConsoleSocket) -> None:
    id = runtime.start(runtime.spec("sleep", "100"))
    flags = ["--tty", "--detach", "--console-socket", console.path]
    runtime.detached("exec", *flags, id, "sh", "-c", "tty; read line; echo got $line")
    master = console.master()
    read_until(master, "/dev/pts/0\r\n")
    os.write(master, b"word\n")
    read_until(master, "got word\r\n")
    os.close(master)


def test_a_terminal_without_a_socket_is_refused(runtime: Runtime) -> None:
    spec = runtime.spec("true", terminal=True)
    id = runtime.new_id()
    assert runtime("create", "--bundle", runtime.bundle(spec, id), id).returncode == 1


def test_a_console_socket_that_nobody_listens_on(runtime: Runtime, tmp_path: Path) -> None:
    spec = runtime.spec("true", terminal=True)
    id = runtime.new_id()
    flags = ["--console-socket", f"{tmp_path}/nobody"]
    result = runtime("create", "--bundle", runtime.bundle(spec, id), *flags, id)
    assert result.returncode == 1
    if runtime.ours:
        assert f"--console-socket {tmp_path}/nobody: No such file" in result.stderr


def test_run_serves_the_terminal_that_it_is_on(runtime: Runtime) -> None:
    """`run -t` as a person starts it: our stdio is a terminal and becomes raw."""
    script = "stty size; read line; echo got $line"
    id = runtime.new_id()
    bundle = runtime.bundle(runtime.spec("sh", "-c", script, terminal=True), id)
    command = [*runtime.host.enter, *runtime.command("run", "--bundle", bundle, id)]
    pid, master = os.forkpty()
    if pid == 0:
        os.execvp(command[0], command)
    import fcntl
    import struct
    import termios

    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
    read_until(master, "\r\n")
    os.write(master, b"word\r")
    read_until(master, "got word")
    with contextlib.suppress(OSError):
        while os.read(master, 4096):
            continue
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    os.close(master)


# Descriptors.


def test_descriptors_are_preserved_when_asked_for(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("inherited\n")
    command = 'exec 3<"$1"; shift; exec "$@"'
    id = runtime.new_id()
    bundle = runtime.bundle(runtime.spec("sh", "-c", "cat <&3"), id)
    arguments = runtime.command("run", "--preserve-fds", "1", "--bundle", bundle, id)
    result = runtime.host.run("bash", "-c", command, "-", f"{tmp_path}/file", *arguments)
    assert result.stdout == "inherited\n", result


def test_no_other_descriptor_reaches_the_container(wherry_oci: Runtime, tmp_path: Path) -> None:
    id = wherry_oci.new_id()
    bundle = wherry_oci.bundle(wherry_oci.spec("ls", "/proc/self/fd"), id)
    arguments = wherry_oci.command("run", "--bundle", bundle, id)
    result = wherry_oci.host.run("bash", "-c", 'exec 7</etc/passwd; exec "$@"', "-", *arguments)
    assert result.stdout.split() == ["0", "1", "2", "3"]  # 3 is the directory that ls reads


def test_a_descriptor_that_is_not_open_cannot_be_preserved(wherry_oci: Runtime) -> None:
    result = wherry_oci.run(wherry_oci.spec("true"), "--preserve-fds", "1", close_fds=True)
    assert result.returncode == 1
    assert "--preserve-fds 1: descriptor 3 is not open" in result.stderr


# Signals to the command line itself.


def test_a_signal_to_run_reaches_the_container(runtime: Runtime) -> None:
    import subprocess

    script = "trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    id = runtime.new_id()
    bundle = runtime.bundle(runtime.spec("sh", "-c", script), id)
    command = [*runtime.host.enter, *runtime.command("run", "--bundle", bundle, id)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.stdout.readline() == "bye\n"
    assert process.wait(DEADLINE) == 9
    process.stdout.close()


def test_create_that_is_terminated_leaves_nothing(wherry_oci: Runtime, tmp_path: Path) -> None:
    import subprocess

    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    spec = wherry_oci.spec("true")
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"echo x >{fifo}; sleep 100"]}
    change(spec, "hooks", {"createRuntime": [hook]})
    id = wherry_oci.new_id()
    command = wherry_oci.command("create", "--bundle", wherry_oci.bundle(spec, id), id)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    process = subprocess.Popen([*wherry_oci.host.enter, *command], stderr=subprocess.DEVNULL)
    assert select.select([reader], [], [], DEADLINE)[0]
    process.terminate()
    assert process.wait(DEADLINE) == 1
    os.close(reader)
    deadline = time.monotonic() + DEADLINE
    while wherry_oci.host.residue()["states"]:
        assert time.monotonic() < deadline
