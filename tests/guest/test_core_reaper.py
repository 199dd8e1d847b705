"""The first process of `--init`: machine code that forwards signals and reaps."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import needs
import pytest
from containers_harness import Machine, StartFailed, read_all, read_until

from wherry_guest.core.machine_code import executable, machine_code
from wherry_guest.core.reaper import AARCH64, X86_64, program

pytestmark = pytest.mark.guest


def spec(machine: Machine, *args: str, **process: Any) -> dict[str, Any]:
    return machine.spec(*args, **process) | {"annotations": {"io.wherry.init": "true"}}


@pytest.mark.parametrize(
    ("listing", "package", "prefix", "syntax"),
    [
        (X86_64, "binutils", "", ".intel_syntax noprefix\n"),
        (AARCH64, "binutils-aarch64-linux-gnu", "aarch64-linux-gnu-", ""),
    ],
    ids=["x86-64", "arm64"],
)
def test_the_bytes_are_what_gnus_assembler_makes_of_the_words(
    tmp_path: Path, listing: str, package: str, prefix: str, syntax: str
) -> None:
    assembler = needs.require(package, f"{prefix}as")
    copier = needs.require(package, f"{prefix}objcopy")
    lines = []
    for line in listing.strip("\n").splitlines():
        words = line.partition("#")[0]
        lines.append(words.split(None, 1)[1] if words.startswith(" ") else words)
    (tmp_path / "x.s").write_text(syntax + "\n".join(lines) + "\n")
    subprocess.run([assembler, "-o", "x.o", "x.s"], cwd=tmp_path, check=True)
    subprocess.run([copier, "-O", "binary", "x.o", "x.bin"], cwd=tmp_path, check=True)
    assert machine_code(listing) == (tmp_path / "x.bin").read_bytes()


@pytest.mark.parametrize("code", [0, 7, 255])
def test_the_exit_code_is_the_commands(machine: Machine, code: int) -> None:
    result = machine.run_spec(spec(machine, "sh", "-c", f"echo out; exit {code}"))
    assert (result.exit_code, result.stdout) == (code, "out\n")


def test_a_signal_that_ends_the_command_is_in_the_code(machine: Machine) -> None:
    assert machine.run_spec(spec(machine, "sh", "-c", "kill -TERM $$")).exit_code == 143


def test_it_is_pid_1_and_the_command_is_its_child(machine: Machine) -> None:
    script = "echo $PPID; tr '\\0' ' ' < /proc/1/cmdline; cat /proc/1/comm; readlink /proc/1/exe"
    lines = machine.run_spec(spec(machine, "sh", "-c", script)).stdout.splitlines()
    assert lines[0] == "1"
    assert lines[1].startswith("wherry-init /bin/sh sh -c ")
    assert lines[-1].startswith("/memfd:wherry-init")


def test_it_weighs_next_to_nothing(machine: Machine) -> None:
    script = "grep -E '^(Pss|Private_Dirty):' /proc/1/smaps_rollup"
    text = machine.run_spec(spec(machine, "sh", "-c", script)).stdout
    sizes = {line.split()[0]: int(line.split()[1]) for line in text.splitlines()}
    assert sizes["Pss:"] <= 24, text


def test_signals_go_on_to_the_command(machine: Machine) -> None:
    script = "trap 'echo got term; exit 5' TERM; trap 'echo got usr1' USR1; echo ready; "
    script += "while :; do sleep 0.05; done"
    running = machine.start(spec(machine, "sh", "-c", script))
    read_until(running.stdout, "ready\n")
    os.kill(running.pid, signal.SIGUSR1)
    read_until(running.stdout, "got usr1\n")
    os.kill(running.pid, signal.SIGTERM)
    read_until(running.stdout, "got term\n")
    assert os.waitstatus_to_exitcode(machine.exited(running.key).status) == 5
    for fd in (running.stdin, running.stdout, running.stderr):
        os.close(fd)


def test_the_command_has_no_signal_blocked(machine: Machine) -> None:
    command = ("grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status")
    text = machine.run_spec(spec(machine, *command)).stdout
    assert text.split() == ["SigBlk:", "0" * 16, "SigIgn:", "0" * 16]


def test_orphans_are_reaped(machine: Machine) -> None:
    script = (
        "for i in 1 2 3 4 5 6 7 8; do (sleep 0.1 & ) ; done; sleep 1; "
        "grep -c '^State:.Z' /proc/[0-9]*/status | grep -c ':1'"
    )
    assert machine.run_spec(spec(machine, "sh", "-c", script)).stdout == "0\n"


def test_the_end_takes_everything_along(machine: Machine) -> None:
    running = machine.start(spec(machine, "sh", "-c", "sleep 1000 & exit 3"))
    assert os.waitstatus_to_exitcode(machine.exited(running.key).status) == 3
    os.close(running.stdin)
    assert read_all(running.stdout) == ""
    os.close(running.stderr)


def test_a_command_that_cannot_be_found_is_a_failed_start(machine: Machine) -> None:
    with pytest.raises(StartFailed) as error:
        machine.start(spec(machine, "no-such-program"))
    assert error.value.report.exit_code == 127


def test_a_command_in_no_known_format_is_126(machine: Machine) -> None:
    layer = machine.directory / "l" / "odd"
    layer.mkdir()
    (layer / "odd").write_bytes(b"\x7fodd")
    (layer / "odd").chmod(0o755)
    rootfs = machine.rootfs("odd", "odd", "busybox")
    result = machine.finish(machine.start(spec(machine, "/odd"), rootfs=rootfs))
    assert result.exit_code == 126


def test_another_user_runs_under_it_too(machine: Machine) -> None:
    user = {"username": "web"}
    result = machine.run_spec(spec(machine, "sh", "-c", "id -u; echo $HOME", user=user))
    assert result.stdout == "1000\n/home/web\n"


def test_the_command_owns_the_terminal(machine: Machine) -> None:
    script = "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    running = machine.start(spec(machine, "sh", "-c", script, terminal=True), tty=True)
    read_until(running.stdout, "ready")
    os.write(running.stdin, b"\x03")
    read_until(running.stdout, "interrupted")
    assert os.waitstatus_to_exitcode(machine.exited(running.key).status) == 9
    for fd in (running.stdin, running.stdout, running.stderr):
        os.close(fd)


def test_it_is_a_valid_executable_that_nobody_can_change(tmp_path: Path) -> None:
    readelf = needs.require("binutils", "readelf")
    for machine, listing in (("x86_64", X86_64), ("aarch64", AARCH64)):
        file = tmp_path / f"init-{machine}"
        file.write_bytes(executable(machine, listing))
        done = subprocess.run([readelf, "-lW", file], capture_output=True, text=True, check=True)
        assert done.stderr == "" and "R E" in done.stdout and "GNU_STACK" in done.stdout
    assert len(program()) < 600


def test_the_arm64_one_does_the_same_in_an_emulator(tmp_path: Path) -> None:
    emulator = needs.require("qemu-user-static", "qemu-aarch64-static")
    file = tmp_path / "init"
    file.write_bytes(executable("aarch64", AARCH64))
    file.chmod(0o755)

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        argv = [emulator, "-0", "wherry-init", str(file), *args]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)

    done = run("/bin/sh", "sh", "-c", "echo $0 $1; exit 7", "a", "b")
    assert (done.returncode, done.stdout) == (7, "a b\n")
    assert run("/bin/sh", "sh", "-c", "kill -TERM $$").returncode == 143
    assert run("/no/such/program", "x").returncode == 127
    assert run("/etc/passwd", "x").returncode == 126
    script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    argv = [emulator, "-0", "wherry-init", str(file), "/bin/sh", "sh", "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 5
