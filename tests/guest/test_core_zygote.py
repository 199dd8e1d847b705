"""Execs, terminals, and what PID 1 keeps when its agent goes: through PID 1's own loop."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers_harness import Machine, Running, StartFailed, held_open, read_all, read_until

from wherry_guest import __version__
from wherry_guest.zygote import Exited, Started, code_digest

pytestmark = pytest.mark.guest


@pytest.fixture
def container(machine: Machine) -> Iterator[Running]:
    """One that waits, and is gone afterwards."""
    running = machine.start(machine.spec("sleep", "1000"))
    yield running
    os.kill(running.pid, signal.SIGKILL)
    machine.finish(running)


def process(machine: Machine, *args: str, **fields: object) -> dict:
    return machine.spec(*args, **fields)["process"]


def exec_lines(machine: Machine, container: Running, *args: str, **fields: object) -> list[str]:
    result = machine.finish(machine.exec(container, process(machine, *args, **fields)))
    assert result.exit_code == 0, result
    return result.stdout.splitlines()


def test_what_is_kept_with_a_spawn_is_dropped_with_the_forgetting(machine: Machine) -> None:
    key, pipe, null = machine.new_key(), os.pipe(), os.open(os.devnull, os.O_RDWR)
    keep = {"both ends": pipe, "one": pipe[:1]}
    rootfs = machine.rootfs(key)
    machine.zygote.spawn(key, machine.spec("true"), rootfs, (null,) * 3, False, key, keep)
    machine.exited(key)
    kept = machine.kept().descriptors
    assert {name: len(fds) for name, fds in kept.items()} == {"both ends": 2, "one": 1}
    assert os.fstat(kept["one"][0]).st_ino == os.fstat(pipe[0]).st_ino
    for fd in (*pipe, null, *(it for fds in kept.values() for it in fds)):
        os.close(fd)
    machine.zygote.forget(key, list(keep))
    assert machine.kept().descriptors == {}
    machine.wait(f"{key} to start", lambda message: message.key == key, Started)


# Exec.


def test_exec_is_in_all_namespaces_and_the_cgroup_of_its_container(
    machine: Machine, container: Running
) -> None:
    script = "for k in mnt uts ipc net pid cgroup; do readlink /proc/self/ns/$k; done"
    found = exec_lines(machine, container, "sh", "-c", script)
    for kind, link in zip(("mnt", "uts", "ipc", "net", "pid", "cgroup"), found, strict=True):
        assert link == str(Path(f"/proc/{container.pid}/ns/{kind}").readlink())
    assert "0::/" in exec_lines(machine, container, "cat", "/proc/self/cgroup")


def test_exec_sees_the_containers_root_and_processes(machine: Machine, container: Running) -> None:
    (machine.directory / f"{container.key}-upper/made").write_text("")
    assert "made" in exec_lines(machine, container, "ls", "/")
    assert exec_lines(machine, container, "cat", "/proc/1/comm") == ["sleep"]


def test_exec_reports_exit_codes_and_stdio(machine: Machine, container: Running) -> None:
    running = machine.exec(container, process(machine, "sh", "-c", "cat; echo e >&2; exit 9"))
    result = machine.finish(running, "in")
    assert (result.exit_code, result.stdout, result.stderr) == (9, "in", "e\n")


def test_exec_has_its_own_user_directory_environment_and_capabilities(
    machine: Machine, container: Running
) -> None:
    script = "id -un; pwd; echo $X $HOME; grep -E 'CapBnd|NoNewPrivs' /proc/self/status"
    fields = {
        "user": {"username": "web"},
        "cwd": "/tmp",
        "env": ["PATH=/bin", "X=1"],
        "capabilities": {"bounding": ["CAP_KILL"]},
        "noNewPrivileges": True,
    }
    assert exec_lines(machine, container, "sh", "-c", script, **fields) == [
        "web", "/tmp", "1 /home/web", "CapBnd:\t0000000000000020", "NoNewPrivs:\t1",
    ]  # fmt: skip


def test_exec_has_only_stdio_and_its_parent_is_outside(
    machine: Machine, container: Running
) -> None:
    running = machine.exec(container, process(machine, "sleep", "1000"))
    names = sorted(path.name for path in Path(f"/proc/{running.pid}/fd").iterdir())
    assert names == ["0", "1", "2"]
    status = Path(f"/proc/{running.pid}/status").read_text()
    assert f"PPid:\t{machine.process.pid}" in status
    os.kill(running.pid, signal.SIGKILL)
    machine.finish(running)


def test_exec_of_what_cannot_be_run(machine: Machine, container: Running) -> None:
    for command, code in (("nope", 127), ("/etc", 126), ("/etc/passwd", 126)):
        with pytest.raises(StartFailed) as failure:
            machine.exec(container, process(machine, command))
        assert failure.value.report.exit_code == code


def test_exec_does_not_make_directories(machine: Machine, container: Running) -> None:
    with pytest.raises(StartFailed, match=r"directory /nowhere \(process.cwd\): No such file"):
        machine.exec(container, process(machine, "true", cwd="/nowhere"))


def test_exec_in_a_container_that_ended(machine: Machine) -> None:
    running = machine.start(machine.spec("true"))
    machine.exited(running.key)
    with pytest.raises(StartFailed) as failure:
        machine.exec(running, process(machine, "true"))
    assert failure.value.report.errno == errno.ESRCH
    machine.zygote.forget(running.key)


def test_execs_end_with_their_container(machine: Machine) -> None:
    running = machine.start(machine.spec("sleep", "1000"))
    second = machine.exec(running, process(machine, "sleep", "1000"))
    os.kill(running.pid, signal.SIGKILL)
    assert machine.finish(second).exit_code == -signal.SIGKILL
    assert machine.finish(running).exit_code == -signal.SIGKILL


def test_after_an_exec_new_containers_are_not_born_in_the_old_one(
    machine: Machine, container: Running
) -> None:
    exec_lines(machine, container, "true")
    assert machine.run("sh", "-c", "echo $$").stdout == "1\n"
    assert (
        Path(f"/proc/{machine.process.pid}/ns/pid_for_children").readlink()
        == Path("/proc/self/ns/pid").readlink()
    )


# Terminals.


def terminal_lines(running: Running) -> list[str]:
    return read_all(running.stdout).replace("\r\n", "\n").splitlines()


def test_terminal_is_a_pty_of_the_containers_own_devpts(machine: Machine) -> None:
    running = machine.start(machine.spec("sh", "-c", "tty; ls -l /dev/console; tty </dev/console"),
                            tty=True)  # fmt: skip
    found = terminal_lines(running)
    assert found[0] == "/dev/pts/0" and "136," in found[1]
    machine.exited(running.key)
    machine.zygote.forget(running.key)


def test_terminal_is_the_controlling_one(machine: Machine) -> None:
    running = machine.start(machine.spec("sh", "-c", "echo on the tty > /dev/tty"), tty=True)
    assert terminal_lines(running) == ["on the tty"]
    machine.exited(running.key)
    machine.zygote.forget(running.key)


def test_terminal_has_the_specs_size_from_the_first_instruction(machine: Machine) -> None:
    size = {"height": 33, "width": 111}
    running = machine.start(machine.spec("stty", "size", consoleSize=size), tty=True)
    assert terminal_lines(running) == ["33 111"]
    machine.exited(running.key)
    machine.zygote.forget(running.key)


def test_interrupt_key_reaches_the_foreground_process(machine: Machine) -> None:
    script = "trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.01; done"
    running = machine.start(machine.spec("sh", "-c", script), tty=True)
    read_until(running.stdout, "ready")
    os.write(running.stdin, b"\x03")
    read_until(running.stdout, "interrupted")
    assert os.waitstatus_to_exitcode(machine.exited(running.key).status) == 3
    machine.zygote.forget(running.key)


def test_resizing_the_master_signals_the_process(machine: Machine) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.01; done"
    running = machine.start(machine.spec("sh", "-c", script), tty=True)
    read_until(running.stdout, "ready")
    fcntl.ioctl(running.stdout, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    read_until(running.stdout, "50 160")
    os.kill(running.pid, signal.SIGKILL)
    machine.exited(running.key)
    machine.zygote.forget(running.key)


def test_exec_with_a_terminal_gets_the_next_pty(machine: Machine) -> None:
    running = machine.start(machine.spec("sleep", "1000"), tty=True)
    second = machine.exec(running, process(machine, "tty"), tty=True)
    assert terminal_lines(second) == ["/dev/pts/1"]
    machine.exited(second.key)
    os.kill(running.pid, signal.SIGKILL)
    machine.exited(running.key)
    for key in (second.key, running.key):
        machine.zygote.forget(key)


def test_terminal_belongs_to_the_user(machine: Machine) -> None:
    spec = machine.spec("sh", "-c", "echo hi > $(tty)", user={"username": "web"})
    running = machine.start(spec, tty=True)
    assert terminal_lines(running) == ["hi"]
    machine.exited(running.key)
    machine.zygote.forget(running.key)


def test_a_failed_start_with_a_terminal_reports_and_keeps_nothing(machine: Machine) -> None:
    machine.run("true")  # what was forgotten before is closed when this is answered
    machine.settle()
    before = held_open(machine.process.pid)
    with pytest.raises(StartFailed) as failure:
        machine.start(machine.spec("nope"), tty=True)
    assert failure.value.report.exit_code == 127
    machine.run("true")
    machine.settle()
    machine.holds_no_more(before)


# What PID 1 keeps.


def test_descriptors_are_kept_by_name(machine: Machine) -> None:
    reader, writer = os.pipe()
    machine.zygote.keep("pipe", [reader, writer])
    os.close(reader)
    os.close(writer)
    first, second = machine.kept().descriptors["pipe"]
    os.write(second, b"still here")
    assert os.read(first, 100) == b"still here"
    machine.zygote.drop("pipe")
    machine.zygote.drop("pipe")
    assert "pipe" not in machine.kept().descriptors
    os.close(first)
    os.close(second)


def test_more_descriptors_than_fit_one_message_are_kept(machine: Machine) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    for number in range(5):
        machine.zygote.keep(f"many{number}", [fd] * 100)
    kept = machine.kept().descriptors
    assert [len(kept[f"many{number}"]) for number in range(5)] == [100] * 5
    for number in range(5):
        machine.zygote.drop(f"many{number}")
    for group in (*kept.values(), [fd]):
        for kept_fd in group:
            os.close(kept_fd)


def test_a_crashed_agents_successor_hears_everything_again(machine: Machine) -> None:
    running = machine.start(machine.spec("cat"), tty=True)
    ended = machine.start(machine.spec("true"))
    machine.exited(ended.key)
    reader, writer = os.pipe()
    machine.zygote.keep("kept", [reader])
    machine.kept()  # it has arrived
    os.kill(machine.agent_pid, signal.SIGKILL)
    assert machine.next_agent()["directory"] is None

    started = machine.wait("the start again", lambda m: m.key == running.key, Started)
    assert started.pid == running.pid and started.started_ns == running.started.started_ns
    assert started.terminal is not None
    os.write(started.terminal, b"hello\n")
    read_until(started.terminal, "hello\r\nhello")
    assert machine.wait("the exit again", lambda m: m.key == ended.key, Exited).pid == ended.pid
    assert len(machine.kept().descriptors["kept"]) == 1

    machine.zygote.drop("kept")
    machine.zygote.forget(ended.key)
    os.kill(running.pid, signal.SIGKILL)
    machine.exited(running.key)
    machine.zygote.forget(running.key)
    for fd in (reader, writer, started.terminal):
        os.close(fd)


def test_an_agent_can_be_replaced_while_containers_run(machine: Machine) -> None:
    container = machine.start(machine.spec("cat"))
    machine.zygote.replace_agent("/run/new", "abc")
    assert machine.next_agent()["directory"] == "/run/new"
    machine.wait("the start again", lambda m: m.key == container.key, Started)
    assert machine.finish(container, "alive").stdout == "alive"


def test_a_replacement_that_keeps_ending_gives_way_to_pid_1s_own(machine: Machine) -> None:
    machine.zygote.replace_agent("/run/broken", "abc")
    for _ in range(3):
        assert machine.next_agent()["directory"] == "/run/broken"
        os.kill(machine.agent_pid, signal.SIGKILL)
    assert machine.next_agent()["directory"] is None


def test_pid_1_tells_its_version_and_digest(machine: Machine) -> None:
    info = machine.zygote.info()
    assert info.version == __version__
    assert info.digest == code_digest(Path(__file__).parents[2] / "guest-agent")


def test_a_message_that_makes_no_sense_does_not_end_pid_1(machine: Machine) -> None:
    machine.zygote._send({"op": "no such thing"})
    machine.zygote._send({"op": "spawn"})
    assert machine.run("true").exit_code == 0
