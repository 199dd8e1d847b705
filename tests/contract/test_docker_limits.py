"""Sizes, log options and limits with Docker's own command line."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from harness import Wherry
from needs import require
from waiting import eventually

pytestmark = [pytest.mark.contract, pytest.mark.vm]

BUSYBOX = "localhost/busybox"


@pytest.fixture(scope="module", autouse=True)
def docker_program() -> str:
    return require("docker.io", "docker")


@pytest.fixture
def name(wherry: Wherry) -> Iterator[str]:
    wherry.run("machine", "start", check=True, timeout=120)
    it = f"limit-{uuid.uuid4().hex[:8]}"
    yield it
    wherry.docker("rm", "-f", it)


def out(wherry: Wherry, *args: str) -> str:
    return wherry.docker(*args, check=True).stdout.decode().strip()


def test_sizes_of_what_a_container_wrote(wherry: Wherry, name: str) -> None:
    script = "dd if=/dev/zero of=/big bs=1k count=300; ln /big /again; rm /bin/cat"
    out(wherry, "run", "--name", name, BUSYBOX, "sh", "-c", script)
    own, total = map(
        int, out(wherry, "inspect", "-s", name, "-f", "{{.SizeRw}} {{.SizeRootFs}}").split()
    )
    assert own == 300 * 1024 and total > own
    assert out(wherry, "inspect", name, "-f", "{{.SizeRw}}") == "<nil>"
    shown = out(wherry, "ps", "-as", "--filter", f"name={name}", "--format", "{{.Size}}")
    assert shown.startswith("307kB (virtual ")
    line = next(it for it in out(wherry, "system", "df", "-v").splitlines() if name in it)
    assert "307kB" in line
    assert "307kB (virtual" in wherry.out("ps", "-as", "--filter", f"name={name}")


def test_logs_show_labels_variables_and_the_tag(wherry: Wherry, name: str) -> None:
    options = ("labels=team", "env-regex=^STAGE", "tag={{.Name}}")
    flags = [word for option in options for word in ("--log-opt", option)]
    out(wherry, "run", "--name", name, "-l", "team=core", "-e", "STAGE=a b", *flags, BUSYBOX,
        "echo", "line")  # fmt: skip
    assert out(wherry, "logs", "--details", name) == f"STAGE=a+b,tag={name},team=core line"
    assert out(wherry, "logs", name) == "line"
    assert wherry.out("logs", "--details", name).endswith("team=core line")


def test_log_options_that_are_wrong_say_so(wherry: Wherry, name: str) -> None:
    for option, words in (
        ("nope=1", "unknown log opt 'nope' for json-file log driver"),
        ("max-buffer-size=1m", "only supported with 'non-blocking' mode"),
        ("tag={{.Nope}}", "{{.Nope}} is not understood"),
    ):
        done = wherry.docker("create", "--log-opt", option, "--name", name, BUSYBOX)
        assert done.returncode == 1 and words in done.stderr.decode(), done.stderr
    out(wherry, "run", "--log-opt", "mode=non-blocking", "--log-opt", "max-buffer-size=1m",
        "--name", name, BUSYBOX, "echo", "line")  # fmt: skip
    assert out(wherry, "logs", name) == "line"


def test_limits_of_block_io(wherry: Wherry, name: str) -> None:
    rates = {"--device-read-bps": "1mb", "--device-write-iops": "50"}
    flags = [word for flag, rate in rates.items() for word in (flag, f"/dev/vda:{rate}")]
    shared = ("--cgroupns", "host", "--privileged")
    out(wherry, "run", "-d", "--name", name, *flags, "--blkio-weight", "500", BUSYBOX,
        "sleep", "1000")  # fmt: skip
    full = out(wherry, "inspect", name, "-f", "{{.Id}}")
    control = (
        f"cat /sys/fs/cgroup/containers/{full}/io.max /sys/fs/cgroup/containers/{full}/io.weight"
    )
    shown = out(wherry, "run", "--rm", *shared, BUSYBOX, "sh", "-c", control)
    assert "rbps=1048576" in shown and "wiops=50" in shown and "default 4950" in shown
    out(wherry, "update", "--blkio-weight", "10", name)
    assert "default 1\n" in out(wherry, "run", "--rm", *shared, BUSYBOX, "sh", "-c", control) + "\n"
    wherry.out("update", "--blkio-weight", "1000", name)
    done = wherry.docker("run", "--rm", "--device-read-bps", "/dev/none:1mb", BUSYBOX, "true")
    assert done.returncode == 125 and b"limit the I/O of /dev/none" in done.stderr


def test_restart_sends_the_signal_that_is_asked_for(wherry: Wherry, name: str) -> None:
    script = "trap 'echo got it; exit 0' USR1; echo ready; while :; do sleep 0.1; done"
    out(wherry, "run", "-d", "--name", name, BUSYBOX, "sh", "-c", script)
    eventually("it is ready", lambda: "ready" in out(wherry, "logs", name))
    out(wherry, "restart", "-s", "USR1", name)
    assert "got it" in out(wherry, "logs", name)
    wherry.out("rm", "-f", name)
