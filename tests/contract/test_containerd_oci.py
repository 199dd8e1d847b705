"""containerd and its shim drive our OCI runtime, as they do for Docker (`--runc-binary`).

In a mount namespace of the test's own, whose /sys/fs/cgroup is the plain cgroup v2 tree.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import needs
import pytest
from cgroup_host import open_cgroup_host, runtime_script
from containers_harness import make_busybox
from harness import Terminal
from oci_harness import SPEC
from waiting import eventually

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux"),
]

SECONDS = 60.0
CONFIG = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{directory}/containerd.sock"
[ttrpc]
  address = "{directory}/ttrpc.sock"
"""
Done = subprocess.CompletedProcess[str]


class Ctr:
    """ctr(8), on a containerd of the test's own; its shim starts our runtime."""

    def __init__(self, directory: Path, keeper: int) -> None:
        self.directory = directory
        self.namespace = f"wherry-ctr-{os.getpid()}"
        self.rootfs = directory / "rootfs"
        self.runtime_root = directory / "oci"
        self.runtime = runtime_script(directory / "wherry-oci", f"--root={self.runtime_root}")
        self.enter = ["nsenter", "--mount", f"--target={keeper}"]

    def command(self, *arguments: str) -> list[str]:
        where = f"--address={self.directory}/containerd.sock"
        return [*self.enter, "ctr", where, f"--namespace={self.namespace}", *arguments]

    def __call__(self, *arguments: str) -> Done:
        return subprocess.run(
            self.command(*arguments), input="", capture_output=True, text=True,
            timeout=SECONDS, check=False,
        )  # fmt: skip

    def ok(self, *arguments: str) -> str:
        result = self(*arguments)
        assert result.returncode == 0, (arguments, result)
        return result.stdout

    def flags(self, id: str, *args: str, **process: Any) -> list[str]:
        """Of `ctr run`, for a container of busybox with our own spec."""
        spec = copy.deepcopy(SPEC)
        spec["process"] |= {"args": list(args), **process}
        spec["root"]["path"] = os.fspath(self.rootfs)
        spec["linux"]["cgroupsPath"] = f"/{self.namespace}/{id}"
        config = self.directory / f"{id}.json"
        config.write_text(json.dumps(spec))
        return [f"--runc-binary={self.runtime}", f"--config={config}", id]

    def run(self, id: str, *args: str) -> Done:
        return self("run", "--rm", *self.flags(id, *args))

    def status(self, id: str) -> str:
        rows = (line.split() for line in self.ok("tasks", "ls").splitlines())
        return next(row[2] for row in rows if row[0] == id)


@pytest.fixture(scope="module")
def ctr() -> Iterator[Ctr]:
    program = needs.require("containerd", "containerd")
    directory = Path(tempfile.mkdtemp(prefix="wherry-ctr-"))
    directory.chmod(0o755)
    keeper = open_cgroup_host()
    it = Ctr(directory, keeper.pid)
    make_busybox(it.rootfs)
    for name in ("proc", "sys", "dev"):
        (it.rootfs / name).mkdir()
    (directory / "config.toml").write_text(CONFIG.format(directory=directory))
    with (directory / "log").open("w") as log:
        words = [*it.enter, program, f"--config={directory}/config.toml"]
        daemon = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        eventually("containerd answers", lambda: it("version").returncode == 0)
        yield it
        assert not list(it.runtime_root.glob("*")), "containers are left in the runtime's store"
    finally:
        daemon.terminate()
        daemon.wait(SECONDS)
        keeper.kill()
        keeper.wait(SECONDS)
        shutil.rmtree(directory)


def test_output_input_and_exit_code(ctr: Ctr) -> None:
    flags = ctr.flags("one", "sh", "-c", "cat; echo err >&2; exit 7")
    with subprocess.Popen(
        ctr.command("run", "--rm", *flags),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("hello\n")
        process.stdin.flush()
        # ctr passes the end of its input on once it knows the task, and forgets an earlier one
        first = process.stdout.readline()
        output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, first + output, errors) == (7, "hello\n", "err\n")


def test_the_runtimes_errors_reach_the_user(ctr: Ctr) -> None:
    """containerd reads them from the log that it names (`--log`, `--log-format json`)."""
    missing = ctr.run("missing", "/no/such")
    assert missing.returncode == 1
    assert "create failed: exec: " in missing.stderr
    assert '"/no/such": stat /no/such: no such file or directory' in missing.stderr
    flags = ["--runc-systemd-cgroup", "--cgroup=a:b:c", *ctr.flags("systemd", "true")]
    assert "cgroups by systemd are not supported" in ctr("run", "--rm", *flags).stderr


def test_a_life(ctr: Ctr) -> None:
    ctr.ok("run", "--detach", *ctr.flags("life", "sleep", "100"))
    assert ctr.status("life") == "RUNNING"
    execute = ["tasks", "exec", "--exec-id"]
    who = ctr.ok(*execute, "e1", "--user=1000:1000", "--cwd=/tmp", "life", "sh", "-c", "id -u; pwd")
    assert who.split() == ["1000", "/tmp"]
    assert ctr(*execute, "e2", "life", "sh", "-c", "exit 5").returncode == 5
    assert "exec failed" in ctr(*execute, "e3", "life", "no-such").stderr
    ctr.ok("tasks", "pause", "life")
    assert ctr.status("life") == "PAUSED"
    ctr.ok("tasks", "resume", "life")
    ctr.ok(*execute, "e4", "--detach", "life", "sleep", "100")
    assert "e4" in ctr.ok("tasks", "ps", "life")
    refused = ctr("tasks", "checkpoint", "life")
    assert "checkpoint is not supported" in refused.stderr
    assert ctr.status("life") == "RUNNING"
    ctr.ok("tasks", "kill", "--all", "--signal=KILL", "life")
    eventually("the task has stopped", lambda: ctr.status("life") == "STOPPED")
    ctr("tasks", "rm", "life")  # its exit code is the task's
    ctr.ok("containers", "rm", "life")


def test_a_terminal(ctr: Ctr) -> None:
    words = ctr.command("run", "--rm", "--tty", *ctr.flags("tty", "sh", terminal=True))
    with Terminal(words, dict(os.environ), 24, 80) as terminal:
        terminal.expect(b"#")
        terminal.type(b"tty; exit 3\r")
        terminal.expect(b"/dev/pts/0")
        assert terminal.wait() == 3
