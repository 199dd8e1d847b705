"""`wherry run` and its kin, end to end: a real engine, a real VM, real containers."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import uuid

import pytest
from harness import Terminal, Wherry
from waiting import eventually

pytestmark = pytest.mark.vm

BUSYBOX = "localhost/busybox"


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def test_a_container_runs_on_the_vms_kernel(wherry: Wherry) -> None:
    assert wherry.out("run", "--rm", BUSYBOX, "uname", "-sr").startswith("Linux 6.12")


def test_stdout_and_stderr_are_kept_apart(wherry: Wherry) -> None:
    done = wherry.run("run", "--rm", BUSYBOX, "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 0)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 42"], 42),
        (["sh", "-c", "sh -c 'kill -TERM $$'; exit $?"], 143),
        (["sh", "-c", "sh -c 'kill -KILL $$'; exit $?"], 137),
        (["/no/such/program"], 127),
        (["no-such-program"], 127),
        (["/etc"], 126),
        (["/etc/passwd"], 126),
    ],
)
def test_exit_codes_are_dockers(wherry: Wherry, command: list[str], code: int) -> None:
    done = wherry.run("run", "--rm", BUSYBOX, *command)
    assert done.returncode == code, done.stderr
    if code in (126, 127):
        assert done.stderr.startswith(b"wherry: ")
        assert command[0].encode() in done.stderr


def test_the_name_of_a_container_that_could_not_start_is_free_again(wherry: Wherry) -> None:
    name = unique("failed")
    assert wherry.run("run", "--rm", "--name", name, BUSYBOX, "/nope").returncode == 127
    assert wherry.run("run", "--rm", "--name", name, BUSYBOX, "true").returncode == 0


def test_stdin_reaches_the_container_and_ends(wherry: Wherry) -> None:
    assert wherry.out("run", "--rm", "-i", BUSYBOX, "wc", "-c", input=b"x" * 100_000) == "100000"


def test_without_i_there_is_no_stdin(wherry: Wherry) -> None:
    assert wherry.out("run", "--rm", BUSYBOX, "wc", "-c", input=b"ignored") == "0"


@pytest.mark.timeout(300)
def test_a_quarter_gigabyte_goes_in_and_out_unchanged_in_flat_memory(wherry: Wherry) -> None:
    block = random.Random(1).randbytes(1 << 20)
    total = 256
    before = resident(wherry.engine_pid())
    process = wherry.popen("run", "--rm", "-i", BUSYBOX, "cat")
    assert process.stdin is not None
    assert process.stdout is not None
    feeder = os.fork()
    if feeder == 0:
        process.stdout.close()
        for _ in range(total):
            process.stdin.write(block)
        process.stdin.close()
        os._exit(0)
    process.stdin.close()
    digest, peak = hashlib.sha256(), 0
    for index, chunk in enumerate(iter(lambda: process.stdout.read(1 << 18), b"")):
        digest.update(chunk)
        if index % 64 == 0:
            peak = max(peak, resident(wherry.engine_pid()))
    os.waitpid(feeder, 0)
    assert process.wait(60) == 0, process.stderr and process.stderr.read()
    expected = hashlib.sha256()
    for _ in range(total):
        expected.update(block)
    assert digest.hexdigest() == expected.hexdigest()
    assert peak - before < 64 << 20, f"the engine grew by {(peak - before) >> 20} MiB"
    if process.stderr:
        process.stderr.close()
    process.stdout.close()


def resident(pid: int) -> int:
    """Bytes of resident memory."""
    with open(f"/proc/{pid}/statm") as statm:  # noqa: PTH123  # a kernel file, read once
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_environment_user_directory_and_host_name_are_as_asked(wherry: Wherry) -> None:
    output = wherry.out(
        "run", "--rm", "-e", "A=b c", "-w", "/tmp/new", "-u", "1000:1000", "-h", "boat", BUSYBOX,
        "sh", "-c", 'echo "$A|$(pwd)|$(id -u):$(id -g)|$(hostname)|$(cat /etc/hostname)|$PATH"',
    )  # fmt: skip
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert output == f"b c|/tmp/new|1000:1000|boat|boat|{path}"


def test_the_entrypoint_can_be_replaced(wherry: Wherry) -> None:
    assert wherry.out("run", "--rm", "--entrypoint", "echo", BUSYBOX, "hi") == "hi"


def test_limits_are_the_cgroups(wherry: Wherry) -> None:
    output = wherry.out(
        "run", "--rm", "-m", "64m", "--pids-limit", "50", "--cpus", "0.5", BUSYBOX, "sh", "-c",
        "cd /sys/fs/cgroup && cat memory.max pids.max cpu.max memory.swap.max",
    )  # fmt: skip
    assert output.split("\n") == [str(64 << 20), "50", "50000 100000", str(64 << 20)]


def test_a_container_over_its_memory_limit_is_killed_and_says_so(wherry: Wherry) -> None:
    name = unique("oom")
    script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=60"
    done = wherry.run(
        "run", "--name", name, "-m", "16m", "--memory-swap", "16m", BUSYBOX, "sh", "-c",
        f"{script} || exit 99",
    )  # fmt: skip
    assert done.returncode in (99, 137)
    state = json.loads(wherry.out("inspect", name))[0]["State"]
    assert state["OOMKilled"]
    wherry.run("rm", name, check=True)


def test_processes_mounts_and_network_are_the_containers_own(wherry: Wherry) -> None:
    output = wherry.out(
        "run", "--rm", BUSYBOX, "sh", "-c",
        "echo $$; ls /sys/class/net; ping -c1 -W2 127.0.0.1 | grep -c '1 packets received';"
        " grep CapEff /proc/self/status; ls /proc/self/fd | wc -l; ps | wc -l",
    )  # fmt: skip
    pid, interface, pings, capabilities, descriptors, processes = output.split("\n")
    assert (pid, interface, pings) == ("1", "lo", "1")
    assert capabilities.split()[1] == "00000000a80425fb"  # Docker's 14
    assert int(descriptors) == 4  # 0, 1, 2 and ls's own
    assert int(processes) <= 5


@pytest.mark.parametrize("mode", ["default", "none", "host"])
def test_the_hosts_loopback_is_closed_in_every_network_mode(wherry: Wherry, mode: str) -> None:
    import socket
    import threading

    reached = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def accept() -> None:
            try:
                server.accept()[0].close()
                reached.set()
            except OSError:
                pass

        threading.Thread(target=accept, daemon=True).start()
        for gateway in ("10.0.2.2", "10.0.2.3"):
            done = wherry.run(
                "run", "--rm", "--network", mode, BUSYBOX,
                "timeout", "3", "nc", "-w", "2", gateway, str(port),
            )  # fmt: skip
            assert done.returncode != 0
        assert not reached.is_set()
        server.shutdown(socket.SHUT_RDWR)


def test_a_container_lives_through_create_start_exec_stop_and_start_again(wherry: Wherry) -> None:
    name = unique("life")
    container = wherry.out(
        "create", "--name", name, BUSYBOX, "sh", "-c",
        "trap 'echo stopping; exit 7' TERM; echo up; while :; do sleep 0.1; done",
    )  # fmt: skip
    assert wherry.out("ps", "-aq", "--no-trunc", "--filter", f"name={name}") == container
    wherry.run("start", name, check=True)
    assert wherry.out("ps", "--filter", f"name={name}", "--format", "{{.Status}}").startswith("Up")
    wherry.run("exec", name, "sh", "-c", "echo kept > /file", check=True)
    wherry.run("stop", "-t", "10", name, check=True)
    assert wherry.out("wait", name) == "7"
    assert wherry.out("logs", name) == "up\nstopping"
    state = json.loads(wherry.out("inspect", name))[0]["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 7)
    wherry.run("start", name, check=True)
    assert wherry.out("exec", name, "cat", "/file") == "kept"
    wherry.run("kill", name, check=True)
    assert wherry.out("wait", name) == "137"
    assert wherry.out("logs", "--tail", "1", name) == "up"
    wherry.run("rm", name, check=True)
    assert wherry.out("ps", "-aq", "--filter", f"name={name}") == ""


def test_exec_has_its_own_streams_code_user_and_directory(wherry: Wherry) -> None:
    name = unique("exec")
    wherry.run("run", "-d", "--name", name, BUSYBOX, "sleep", "1000", check=True)
    done = wherry.run(
        "exec", "-i", "-u", "7", "-w", "/tmp", "-e", "X=y", name,
        "sh", "-c", "echo $X $(id -u) $PWD; cat; echo no >&2; exit 5", input=b"in\n",
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == (b"y 7 /tmp\nin\n", b"no\n", 5)
    assert wherry.run("exec", name, "/no/such").returncode in (126, 127)
    assert wherry.run("exec", unique("nobody"), "true").returncode == 1
    wherry.run("rm", "-f", name, check=True)


def test_names_are_taken_once_and_missing_ones_are_said(wherry: Wherry) -> None:
    name = unique("taken")
    wherry.run("create", "--name", name, BUSYBOX, check=True)
    done = wherry.run("run", "--name", name, BUSYBOX, "true")
    assert done.returncode == 125
    assert name.encode() in done.stderr
    wherry.run("rm", name, check=True)
    for command in (["rm"], ["start"], ["stop"], ["logs"], ["inspect"], ["exec"]):
        done = wherry.run(*command, name, *(["true"] if command == ["exec"] else []))
        assert done.returncode == 1, command
        assert name.encode() in done.stderr
        assert done.stderr.count(b"\n") <= 2  # one line, and perhaps a hint


def test_a_running_container_is_not_removed_without_force(wherry: Wherry) -> None:
    name = unique("busy")
    wherry.run("run", "-d", "--name", name, BUSYBOX, "sleep", "1000", check=True)
    done = wherry.run("rm", name)
    assert done.returncode == 1
    assert b"running" in done.stderr
    wherry.run("rm", "-f", name, check=True)


def test_what_is_wrong_in_the_command_line_is_125(wherry: Wherry) -> None:
    assert wherry.run("run", "--no-such-flag", BUSYBOX).returncode == 125
    assert wherry.run("run", "-m", "lots", BUSYBOX).returncode == 125
    done = wherry.run("run", "localhost/nothing", "true")
    assert done.returncode == 125
    assert b"localhost/nothing" in done.stderr


def test_a_signal_reaches_the_container(wherry: Wherry) -> None:
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done"
    process = wherry.popen("run", "--rm", BUSYBOX, "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[0] == b"caught\n"
    assert process.returncode == 9


def test_a_terminal_is_raw_sized_resized_and_takes_ctrl_c(wherry: Wherry) -> None:
    argv = wherry.argv("run", "--rm", "-it", BUSYBOX, "sh")
    with Terminal(argv, wherry.environment, rows=31, columns=97) as terminal:
        terminal.expect(b"# ")
        terminal.type(b"tty; stty size\r")
        terminal.expect(b"/dev/pts/0")
        terminal.expect(b"31 97")
        terminal.resize(40, 120)
        eventually("the new size arrives", lambda: _size_is(terminal, b"40 120"))
        terminal.type(b"echo sl''eeps; sleep 1000\r")
        terminal.expect(b"sleeps")
        terminal.interrupt(b"# ")
        terminal.type(b"exit 3\r")
        assert terminal.wait() == 3


def _size_is(terminal: Terminal, size: bytes) -> bool:
    terminal.type(b"stty size; echo do''ne\r")
    terminal.expect(b"done")
    return size in terminal.shown


def test_detach_keys_leave_the_container_running(wherry: Wherry) -> None:
    name = unique("detach")
    argv = wherry.argv("run", "-it", "--name", name, BUSYBOX, "sh")
    with Terminal(argv, wherry.environment, rows=24, columns=80) as terminal:
        terminal.expect(b"# ")
        terminal.type(b"\x10\x11")
        assert terminal.wait() == 0
    assert wherry.out("ps", "--filter", f"name={name}", "--format", "{{.State}}") == "running"
    with Terminal(wherry.argv("attach", name), wherry.environment, rows=24, columns=80) as terminal:
        terminal.type(b"echo ag''ain; exit 4\r")
        terminal.expect(b"again")
        assert terminal.wait() == 4
    wherry.run("rm", name, check=True)


def test_logs_can_be_followed_cut_and_stamped(wherry: Wherry) -> None:
    name = unique("logs")
    script = "for i in 1 2 3; do echo out $i; done; echo err >&2; sleep 1; echo last"
    wherry.run("run", "-d", "--name", name, BUSYBOX, "sh", "-c", script, check=True)
    followed = wherry.run("logs", "-f", name, check=True)
    assert followed.stdout == b"out 1\nout 2\nout 3\nlast\n"
    assert followed.stderr == b"err\n"
    assert wherry.out("logs", "--tail", "2", name).endswith("last")
    stamped = wherry.out("logs", "-t", "--tail", "1", name)
    stamp, _, line = stamped.partition(" ")
    assert line == "last"
    assert len(stamp) == len("2006-01-02T15:04:05.000000000Z")
    assert wherry.out("logs", "--since", "1h", name).count("out") == 3
    assert wherry.out("logs", "--until", "1h", name) == ""
    wherry.run("rm", "-f", name, check=True)


def test_formats_are_dockers(wherry: Wherry) -> None:
    name = unique("format")
    container = wherry.out("create", "--name", name, "-l", "a=b", BUSYBOX, "true")
    by_name = ("ps", "-a", "--filter", f"name={name}", "--format")
    assert wherry.out(*by_name, "{{.ID}} {{.Names}}") == f"{container[:12]} {name}"
    assert json.loads(wherry.out(*by_name, "json"))["Names"] == name
    assert wherry.out(*by_name, "table {{.Names}}\t{{.State}}").split("\n")[0].split() == [
        "NAMES",
        "STATE",
    ]
    assert wherry.out("inspect", "-f", "{{.State.Status}}", name) == "created"
    wherry.run("rm", name, check=True)


def test_an_engine_that_was_killed_loses_nothing(wherry: Wherry) -> None:
    name = unique("survivor")
    script = "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; exit 6"
    wherry.run("run", "-d", "--name", name, BUSYBOX, "sh", "-c", script, check=True)
    eventually("it prints", lambda: "line 5" in wherry.out("logs", name))
    for _ in range(3):
        wherry.kill_engine()
        assert wherry.out("exec", name, "echo", "here") == "here"
    assert wherry.out("wait", name) == "6"
    assert wherry.out("logs", name) == "\n".join(f"line {index}" for index in range(400))
    wherry.run("rm", name, check=True)


def test_an_exit_while_no_engine_runs_is_not_missed(wherry: Wherry) -> None:
    name = unique("quiet")
    script = "sleep 1; echo gone; exit 8"
    wherry.run("run", "-d", "--name", name, BUSYBOX, "sh", "-c", script, check=True)
    wherry.kill_engine()
    subprocess.run(["sleep", "2"], check=True)  # nobody of ours runs meanwhile: that is the point
    assert wherry.out("wait", name) == "8"
    assert wherry.out("logs", name) == "gone"
    wherry.run("rm", name, check=True)


def test_two_commands_that_start_the_engine_at_once_start_one(wherry: Wherry) -> None:
    wherry.kill_engine()
    processes = [wherry.popen("run", "--rm", BUSYBOX, "echo", str(n)) for n in range(4)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [out for out, _ in outputs] == [b"%d\n" % n for n in range(4)], outputs


def test_twenty_containers_run_at_once(wherry: Wherry) -> None:
    names = [unique("many") for _ in range(20)]
    processes = [
        wherry.popen("run", "-d", "--name", name, BUSYBOX, "sleep", "1000") for name in names
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    running = wherry.out("ps", "--format", "{{.Names}}").split("\n")
    assert set(names) <= set(running)
    wherry.run("rm", "-f", *names, check=True, timeout=120)
