"""Containers of another architecture beside the machine's own, end to end."""

from __future__ import annotations

import json
import uuid

import pytest
from harness import Wherry
from needs import require

from wherry.machine.accel import host_arch

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

BUSYBOX = "localhost/busybox"
FOREIGN = "localhost/foreign"
OTHER = {"amd64": "arm64", "arm64": "amd64"}[host_arch()]
UNAME = {"amd64": "x86_64", "arm64": "aarch64"}
PLATFORM = f"linux/{OTHER}"
WARNING = f"The requested image's platform ({PLATFORM}) does not match the detected host platform"
CRASH = "kill -SEGV $$"


@pytest.fixture(scope="module")
def foreign(wherry: Wherry) -> str:
    """An image that is for the other architecture only."""
    container = wherry.out("create", "--platform", PLATFORM, BUSYBOX, "uname", "-m", timeout=180)
    wherry.run("commit", container, FOREIGN, check=True)
    wherry.run("rm", container, check=True)
    return FOREIGN


def test_a_foreign_container_runs_beside_a_native_one(wherry: Wherry) -> None:
    done = wherry.run("run", "--rm", "--platform", PLATFORM, BUSYBOX, "uname", "-m", timeout=180)
    assert done.stdout.decode().strip() == UNAME[OTHER], done.stderr.decode()
    assert wherry.out("run", "--rm", BUSYBOX, "uname", "-m") == UNAME[host_arch()]
    again = wherry.run("run", "--rm", "--platform", PLATFORM, BUSYBOX, "uname", "-m")
    assert (again.stdout.decode().strip(), again.stderr) == (UNAME[OTHER], b"")


def test_an_image_that_was_not_asked_for_by_its_platform_is_warned_of(
    wherry: Wherry, foreign: str
) -> None:
    done = wherry.run("run", "--rm", foreign)
    assert done.stdout.decode().strip() == UNAME[OTHER]
    assert WARNING in done.stderr.decode()


def test_the_docker_cli_says_and_does_the_same(wherry: Wherry, foreign: str) -> None:
    require("docker.io", "docker")
    done = wherry.docker("run", "--rm", foreign)
    assert done.stdout.decode().strip() == UNAME[OTHER]
    assert f"WARNING: {WARNING}" in done.stderr.decode()
    asked = wherry.docker("run", "--rm", "--platform", PLATFORM, BUSYBOX, "uname", "-m", check=True)
    assert (asked.stdout.decode().strip(), asked.stderr) == (UNAME[OTHER], b"")
    image = wherry.docker("image", "inspect", "-f", "{{.Os}}/{{.Architecture}}", foreign)
    assert image.stdout.decode().strip() == PLATFORM


def test_programs_keep_their_name_their_user_and_their_environment(
    wherry: Wherry, foreign: str
) -> None:
    """The emulator gets between program and kernel: busybox goes by argv[0]."""
    script = "id -u && echo $VARIABLE"
    command = ["-u", "1000", "-e", "VARIABLE=value", foreign, "sh", "-c", script]
    done = wherry.run("run", "--rm", *command)
    assert done.stdout.decode().split() == ["1000", "value"], done.stderr.decode()


def test_exec_input_and_signals_work(wherry: Wherry, foreign: str) -> None:
    name = f"foreign-{uuid.uuid4().hex[:8]}"
    script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 1; done"
    wherry.run("run", "-d", "--name", name, foreign, "sh", "-c", script, check=True)
    assert wherry.out("exec", "-i", name, "wc", "-c", input=b"x" * 70_000) == "70000"
    assert wherry.out("exec", name, "uname", "-m") == UNAME[OTHER]
    wherry.run("stop", "-t", "20", name, check=True)
    assert wherry.out("logs", name).split() == ["up", "bye"]
    state = json.loads(wherry.out("inspect", name))[0]["State"]
    assert (state["ExitCode"], state["Error"]) == (3, "")
    wherry.run("rm", name, check=True)


def test_a_crash_ends_the_container_and_names_the_alternative(wherry: Wherry, foreign: str) -> None:
    """The first process of a pid namespace is immune to its own signals, emulated or not."""
    name = f"crash-{uuid.uuid4().hex[:8]}"
    done = wherry.run("run", "--name", name, foreign, "sh", "-c", CRASH, timeout=30)
    said = done.stderr.decode()
    assert done.returncode == 139
    assert "uncaught target signal 11" in said
    assert f"wherry machine create --arch {OTHER}" in said
    state = json.loads(wherry.out("inspect", name))[0]["State"]
    assert (state["ExitCode"], state["Running"]) == (139, False)
    assert f"its emulation of {OTHER}, crashed (SIGSEGV)" in state["Error"]
    wherry.run("rm", name, check=True)


def test_an_exec_that_crashes_leaves_its_container_alone(wherry: Wherry, foreign: str) -> None:
    name = f"exec-{uuid.uuid4().hex[:8]}"
    wherry.run("run", "-d", "--name", name, foreign, "sleep", "1000", check=True)
    done = wherry.run("exec", name, "sh", "-c", CRASH)
    assert done.returncode == 139
    assert f"wherry machine create --arch {OTHER}" in done.stderr.decode()
    assert wherry.out("exec", name, "echo", "alive") == "alive"
    wherry.run("rm", "-f", name, check=True)


def test_foreign_containers_outlive_an_engine(wherry: Wherry, foreign: str) -> None:
    name = f"adopted-{uuid.uuid4().hex[:8]}"
    wherry.run("run", "-d", "--name", name, foreign, "sleep", "1000", check=True)
    wherry.kill_engine()
    assert wherry.out("exec", name, "uname", "-m") == UNAME[OTHER]
    assert wherry.out("run", "--rm", "--platform", PLATFORM, BUSYBOX, "uname", "-m") == UNAME[OTHER]
    wherry.run("rm", "-f", name, check=True)


@pytest.mark.skipif(host_arch() != "amd64", reason="only x86-64 is sure to run 32-bit programs")
def test_32_bit_programs_run_without_an_emulator(wherry: Wherry, foreign: str) -> None:
    """The kernel is asked: it starts a 32-bit program, so none is registered for them."""
    wherry.run("run", "--rm", foreign, check=True)
    formats = ["sh", "-c", "mount -t binfmt_misc none /mnt && ls /mnt"]
    command = ["run", "--rm", "--privileged", "--tmpfs", "/mnt", BUSYBOX, *formats]
    registered = wherry.out(*command).split()
    assert {"wherry-arm64", "wherry-riscv64", "wherry-s390x"} <= set(registered)
    assert not {"wherry-386", "wherry-amd64"} & set(registered)


def test_what_nobody_makes_busybox_for_is_said(wherry: Wherry) -> None:
    done = wherry.run("create", "--platform", "linux/s390x", BUSYBOX)
    assert done.returncode != 0
    assert "is not there for linux/s390x" in done.stderr.decode()
