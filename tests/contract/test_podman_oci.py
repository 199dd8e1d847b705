"""Podman drives our OCI runtime (`podman --runtime`), with conmon between them.

In a mount namespace of the test's own, whose /sys/fs/cgroup is the plain cgroup v2 tree.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import needs
import pytest
from cgroup_host import open_cgroup_host, runtime_script
from waiting import eventually

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux"),
]

SECONDS = 90.0
DEADLINE = 20.0
IMAGE = "localhost/busybox"
PASSWD = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/home:/bin/sh\n"
MODEST = ["--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"]
"""Podman's own defaults are beyond what a root without CAP_SYS_RESOURCE may set."""


class Podman:
    """Podman with a store of its own, and our runtime."""

    def __init__(self, directory: Path, keeper: int) -> None:
        self.directory = directory
        self.runtime_root = directory / "oci"
        wrapper = runtime_script(directory / "wherry-oci", f"--root={self.runtime_root}")
        self._argv = [
            "nsenter", "--mount", f"--target={keeper}", needs.require("podman", "podman"),
            f"--root={directory}/store", f"--runroot={directory}/run", "--storage-driver=vfs",
            "--cgroup-manager=cgroupfs", "--events-backend=file", f"--runtime={wrapper}",
        ]  # fmt: skip

    def __call__(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._argv, *arguments],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            **({} if "input" in options else {"stdin": subprocess.DEVNULL}),
            **options,
        )

    def ok(self, *arguments: str, **options: Any) -> str:
        result = self(*arguments, **options)
        assert result.returncode == 0, (arguments, result.stdout, result.stderr)
        return result.stdout

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self("run", "--rm", *self.limits(), *arguments, **options)

    def limits(self) -> list[str]:
        return [*MODEST, "--pids-limit=0"]

    def start(self, *arguments: str) -> str:
        return self.ok("run", "--detach", *self.limits(), *arguments).strip()

    def status(self, id: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.ok("inspect", id))[0]["State"]
        return state

    def restarts(self, id: str) -> int:
        return int(self.ok("inspect", "--format={{.RestartCount}}", id))


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    # not below pytest's directory, which a user namespace's root may not enter
    directory = Path(tempfile.mkdtemp(prefix="wherry-podman-"))
    directory.chmod(0o755)
    keeper = open_cgroup_host()
    it = Podman(directory, keeper.pid)
    it.ok("import", str(busybox_tar(directory)), IMAGE)
    yield it
    it("rm", "--all", "--force", "--time=0")
    assert not list(it.runtime_root.glob("*")), "containers are left in the runtime's store"
    keeper.kill()
    keeper.wait(DEADLINE)
    shutil.rmtree(directory)


def busybox_tar(directory: Path) -> Path:
    """A root file system of Debian's static busybox."""
    busybox = needs.require("busybox-static", "busybox")
    root = directory / "busybox"
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev", "root"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    listing = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    for applet in set(listing.stdout.split()) - {"busybox"}:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text("root:x:0:\nweb:x:1000:\n")
    with tarfile.open(directory / "busybox.tar", "w") as tar:
        tar.add(root, ".")
    return directory / "busybox.tar"


def test_run_and_its_output(podman: Podman) -> None:
    result = podman.run(IMAGE, "sh", "-c", "echo out; echo err >&2")
    assert (result.returncode, result.stdout, result.stderr) == (0, "out\n", "err\n")


@pytest.mark.parametrize("code", [0, 3, 255])
def test_exit_code(podman: Podman, code: int) -> None:
    assert podman.run(IMAGE, "sh", "-c", f"exit {code}").returncode == code


def test_input_arrives(podman: Podman) -> None:
    assert podman.run("--interactive", IMAGE, "cat", input="hello\n").stdout == "hello\n"


@pytest.mark.parametrize(
    ("command", "code"), [("no-such", 127), ("/no/such", 127), ("/etc", 126), ("/etc/passwd", 126)]
)
def test_what_cannot_be_run_has_podmans_exit_code(podman: Podman, command: str, code: int) -> None:
    assert podman.run(IMAGE, command).returncode == code


def test_a_life(podman: Podman) -> None:
    id = podman.start(IMAGE, "sleep", "100")
    assert podman.status(id)["Status"] == "running"
    assert podman.ok("exec", id, "echo", "hi") == "hi\n"
    assert podman("exec", id, "sh", "-c", "exit 7").returncode == 7
    assert podman("exec", id, "no-such").returncode == 127
    podman.ok("pause", id)
    assert podman.status(id)["Status"] == "paused"
    podman.ok("unpause", id)
    podman.ok("kill", "--signal=KILL", id)
    podman.ok("wait", id)
    state = podman.status(id)
    assert (state["Status"], state["ExitCode"]) == ("exited", 137)
    podman.ok("start", id)
    assert podman.status(id)["Status"] == "running"
    podman.ok("rm", "--force", "--time=0", id)


def test_what_podman_does_to_a_running_one(podman: Podman) -> None:
    id = podman.start(IMAGE, "sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.1; done")
    flags = ["--user=web", "--workdir=/tmp", "--env=A=b"]
    assert podman.ok("exec", *flags, id, "sh", "-c", "id -u; pwd; echo $A").split() == [
        "1000",
        "/tmp",
        "b",
    ]
    assert podman.ok("exec", "--interactive", id, "cat", input="in\n") == "in\n"
    podman.ok("cp", "/etc/hostname", f"{id}:/tmp/copied")
    assert podman.ok("exec", id, "cat", "/tmp/copied") == Path("/etc/hostname").read_text()
    podman.ok("restart", "--time=5", id)
    podman.ok("kill", "--signal=TERM", id)
    assert podman.ok("wait", id) == "5\n"
    podman.ok("rm", id)


def test_a_restart_policy(podman: Podman) -> None:
    id = podman.start("--restart=on-failure:2", IMAGE, "false")
    podman.ok("wait", id)
    eventually("it was tried three times", lambda: podman.restarts(id) == 2)
    podman.ok("rm", "--force", "--time=0", id)


def test_create_and_start_later(podman: Podman) -> None:
    id = podman.ok("create", *podman.limits(), IMAGE, "echo", "later").strip()
    assert podman.ok("start", "--attach", id) == "later\n"
    podman.ok("rm", id)


def test_logs_of_a_detached_one(podman: Podman) -> None:
    id = podman.start(IMAGE, "echo", "kept")
    podman.ok("wait", id)
    deadline = time.monotonic() + DEADLINE
    while podman.ok("logs", id) != "kept\n":
        assert time.monotonic() < deadline, f"waited {DEADLINE} s for the log of {id}"
    podman.ok("rm", id)


def test_a_terminal(podman: Podman) -> None:
    assert "/dev/pts/0" in podman.run("--tty", IMAGE, "tty").stdout
    id = podman.start(IMAGE, "sleep", "100")
    assert "/dev/pts/" in podman.ok("exec", "--tty", id, "tty")
    podman.ok("rm", "--force", "--time=0", id)


def test_user_directory_environment_and_name(podman: Podman) -> None:
    flags = ["--user=web", "--workdir=/tmp", "--env=A=b", "--hostname=box"]
    out = podman.run(*flags, IMAGE, "sh", "-c", "id -u; pwd; echo $A; hostname").stdout
    assert out.split() == ["1000", "/tmp", "b", "box"]


def test_volumes_tmpfs_and_readonly(podman: Podman, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("shared\n")
    script = (
        "cat /mnt/file; touch /mnt/x || echo ro; touch /x || echo root; touch /tmp/x && echo ok"
    )
    flags = [f"--volume={tmp_path}:/mnt:ro", "--read-only", "--tmpfs=/tmp"]
    out = podman.run(*flags, IMAGE, "sh", "-c", script).stdout
    assert out.split() == ["shared", "ro", "root", "ok"]


def test_a_named_volume_keeps_what_was_written(podman: Podman) -> None:
    podman.ok("volume", "create", "kept")
    assert podman.run("--volume=kept:/mnt", IMAGE, "sh", "-c", "echo x >/mnt/f").returncode == 0
    assert podman.run("--volume=kept:/mnt", IMAGE, "cat", "/mnt/f").stdout == "x\n"


def test_capabilities_and_privileged(podman: Podman) -> None:
    command = [IMAGE, "sh", "-c", "mount -t tmpfs tmpfs /tmp && echo mounted"]
    assert "mounted" not in podman.run(*command).stdout
    assert "mounted" in podman.run("--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined",
                                   *command).stdout  # fmt: skip
    assert "mounted" in podman.run("--privileged", *command).stdout


def test_what_takes_rights_away(podman: Podman) -> None:
    flags = ["--cap-drop=ALL", "--security-opt=no-new-privileges", "--oom-score-adj=100"]
    script = (
        "grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; cat /proc/self/oom_score_adj"
    )
    out = podman.run(*flags, IMAGE, "sh", "-c", script).stdout
    assert out.split() == ["CapBnd:", "0" * 16, "NoNewPrivs:", "1", "Seccomp:", "2", "100"]


@pytest.mark.parametrize(
    ("flag", "controller", "file", "value"),
    [
        ("--memory=64m", "memory", "memory.max", "67108864"),
        ("--pids-limit=50", "pids", "pids.max", "50"),
    ],
)
def test_limits_hold_or_name_their_controller(
    podman: Podman, flag: str, controller: str, file: str, value: str
) -> None:
    result = podman("run", "--rm", *MODEST, flag, IMAGE, "cat", f"/sys/fs/cgroup/{file}")
    assert result.stdout.strip() == value or f"is there a {controller} controller" in result.stderr


def test_sysctl_device_and_shm(podman: Podman) -> None:
    flags = ["--sysctl=net.ipv4.ip_forward=1", "--device=/dev/zero:/dev/mine", "--shm-size=1m"]
    script = (
        "cat /proc/sys/net/ipv4/ip_forward; head -c2 /dev/mine | wc -c; df -k /dev/shm | tail -1"
    )
    lines = podman.run(*flags, IMAGE, "sh", "-c", script).stdout.splitlines()
    assert lines[:2] == ["1", "2"]
    assert lines[-1].split()[1] == "1024"


def test_a_user_namespace(podman: Podman) -> None:
    flags = ["--uidmap=0:100000:65536", "--gidmap=0:100000:65536"]
    out = podman.run(*flags, IMAGE, "sh", "-c", "id -u; cat /proc/self/uid_map; stat -c %u /bin")
    assert out.stdout.split() == ["0", "0", "100000", "65536", "0"], out


def test_namespaces_of_another_container(podman: Podman) -> None:
    id = podman.start(IMAGE, "sleep", "100")
    flags = [f"--pid=container:{id}", f"--ipc=container:{id}"]
    out = podman.run(*flags, IMAGE, "sh", "-c", "tr '\\0' ' ' </proc/1/cmdline").stdout
    assert "sleep 100" in out
    podman.ok("rm", "--force", "--time=0", id)


def test_top_and_stop(podman: Podman) -> None:
    script = "trap 'exit 5' TERM; while :; do sleep 0.1; done"
    id = podman.start(IMAGE, "sh", "-c", script)
    assert "sleep" in podman.ok("top", id) or "sh" in podman.ok("top", id)
    podman.ok("stop", "--time=10", id)
    assert podman.status(id)["ExitCode"] == 5
    podman.ok("rm", id)


def test_nothing_is_left_of_many(podman: Podman) -> None:
    for _ in range(3):
        assert podman.run(IMAGE, "true").returncode == 0
    deadline = time.monotonic() + DEADLINE
    while list(podman.runtime_root.glob("*")):  # conmon's clean-up comes a moment later
        assert time.monotonic() < deadline, "containers are left in the runtime's store"
