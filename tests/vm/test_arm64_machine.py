"""A machine of the other architecture, which is what Apple Silicon runs: it boots, is adopted, runs
containers of both, and stops. Software emulation throughout."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
from collections.abc import Iterator
from errno import EBADF, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM
from pathlib import Path

import pytest
from harness import Terminal, Wherry
from needs import require
from syscall_program import syscall_program
from waiting import eventually

from wherry.machine.accel import host_arch

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(300),
    pytest.mark.skipif(host_arch() == "arm64", reason="the shared machine is one already"),
]

NAME = "arm"
BUSYBOX = "localhost/busybox"
AF_VSOCK = 40


@pytest.fixture(scope="module")
def arm(wherry: Wherry) -> Iterator[Wherry]:
    """The commands, told to talk to the arm64 machine; it runs."""
    require("qemu-system-arm", "qemu-system-aarch64")
    wherry.run("machine", "create", "--arch", "arm64", "--memory", "768m", NAME, check=True)
    it = Wherry(wherry.home, {"WHERRY_MACHINE": NAME})
    it.run("machine", "start", "--no-template", check=True, timeout=240)
    yield it
    it.run("machine", "rm", "--force", NAME, timeout=60)


def test_its_containers_are_arm64(arm: Wherry) -> None:
    facts = json.loads(arm.out("machine", "inspect"))[0]
    assert (facts["arch"], facts["accel"]) == ("arm64", "tcg")
    assert arm.out("run", "--rm", BUSYBOX, "uname", "-m") == "aarch64"
    image = json.loads(arm.out("inspect", "--type", "image", BUSYBOX))[0]
    assert image["Architecture"] == "arm64"


def test_the_default_profile_and_a_native_init_hold_there(arm: Wherry) -> None:
    """Seccomp's tables and the first process of `--init` are arm64's."""
    script = "grep Seccomp: /proc/self/status; cat /proc/1/comm; unshare -m true || echo refused"
    words = arm.out("run", "--rm", "--init", BUSYBOX, "sh", "-c", script).split()
    assert words == ["Seccomp:", "2", "wherry-init", "refused"]


CLONE_NEWUSER, CLONE_FS = 0x10000000, 0x200
PROBES = {
    # arguments are bad throughout; a call of arm64, by default, without a filter
    "mount": ((0, 0, 0, 0, 0), EPERM, EFAULT),
    "keyctl": ((9999,), EPERM, EOPNOTSUPP),
    "bpf": ((9999, 0, 0), EPERM, EINVAL),
    "clone3": ((0, 0), ENOSYS, EINVAL),
    "clone": ((CLONE_NEWUSER | CLONE_FS, 0, 0, 0, 0), EPERM, EINVAL),
    "personality": ((0x40000,), EPERM, 0),
    "socket": ((AF_VSOCK, 9999, 0), EPERM, EINVAL),
    "io_uring_setup": ((0, 0), EPERM, EFAULT),
    "close": ((999,), EBADF, EBADF),
    "getpid": ((), 0, 0),
}


def test_seccomps_table_is_arm64s(arm: Wherry) -> None:
    """Each call by its own number there, with Docker's profile and without one."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as out:
        for name, (arguments, *_) in PROBES.items():
            program = syscall_program(name, *arguments, machine="aarch64")
            info = tarfile.TarInfo(f"bin/probe-{name}")
            info.size, info.mode = len(program), 0o755
            out.addfile(info, io.BytesIO(program))
    script = 'tar -xf - -C /; for p in /bin/probe-*; do $p; echo "${p#*-} $?"; done'
    for flags, column in (((), 1), (("--security-opt", "seccomp=unconfined"), 2)):
        command = ["run", "--rm", "-i", *flags, BUSYBOX, "sh", "-c", script]
        rows = (line.split() for line in arm.out(*command, input=tar.getvalue()).splitlines())
        found = {name: int(code) for name, code in rows}
        assert found == {name: wanted[column] for name, wanted in PROBES.items()}


def test_input_exec_terminal_logs_and_stop(arm: Wherry) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 1; done"
    arm.run("run", "-d", "--name", "service", BUSYBOX, "sh", "-c", script, check=True)
    assert arm.out("exec", "-i", "service", "wc", "-c", input=b"x" * 70_000) == "70000"
    with Terminal(arm.argv("exec", "-it", "service", "sh"), arm.environment, 24, 80) as terminal:
        terminal.expect(b"#")
        terminal.type(b"tty; exit 5\r")
        terminal.expect(b"/dev/pts/0")
        assert terminal.wait() == 5
    pid = int(arm.home.machine(NAME).engine_lock.read_text())
    os.kill(pid, signal.SIGKILL)
    eventually("the killed engine is gone", lambda: not Path(f"/proc/{pid}/exe").exists())
    arm.run("stop", "-t", "20", "service", check=True)  # by a new engine, which adopts
    assert arm.out("logs", "service").split() == ["up", "bye"]
    arm.run("rm", "service", check=True)


def test_a_layer_more_is_plugged_and_changed(arm: Wherry) -> None:
    script = "echo data > /file && mkdir /made && rm /etc/group"
    arm.run("run", "--name", "changed", BUSYBOX, "sh", "-c", script, check=True)
    assert set(arm.out("diff", "changed").splitlines()) >= {"A /file", "A /made", "D /etc/group"}
    arm.run("commit", "changed", "localhost/changed", check=True)
    assert arm.out("run", "--rm", "localhost/changed", "cat", "/file") == "data"
    arm.run("rm", "changed", check=True)
    arm.run("rmi", "localhost/changed", check=True)


def test_it_stops(arm: Wherry) -> None:
    arm.run("machine", "stop", NAME, check=True)
    assert json.loads(arm.out("machine", "inspect"))[0]["state"] == "stopped"
